"""Tables of sweeps that searched: one chosen run for each number, never a mean over draws."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import CONFIG, write_run
from rich.console import Console

from steppe.benchmark.plan import Cell, Plan, PlannedDraw, write_plan
from steppe.report import load_runs, load_selected, print_choices, print_selections, print_table, summarise, write_page
from steppe.report.statistics import Comparison, Method

DRAWN = (1e-4, 2e-4, 3e-4)
FINGERPRINT = str(CONFIG["dataset_fingerprint"])


def row(step: int, validation: float, held_out: float, oracle: float = 0.0) -> dict[str, Any]:
    return {
        "step": step,
        "validation_accuracy": validation,
        "validation_loss": 1.0,
        "held_out_accuracy": held_out,
        "held_out_accuracy_all": held_out,
        "held_out_validation_accuracy": oracle,
        "in_domain_accuracy": validation,
    }


def trained(root: Path, algorithm: str, seed: int, lr: float, rows: list[dict[str, Any]], **config: Any) -> Path:
    """A run whose result is that of its best row."""
    best = max(rows, key=lambda one: float(one["validation_accuracy"]))
    result = {
        "version": 2,
        "checkpoints": rows,
        "selected_step": best["step"],
        "validation_accuracy": best["validation_accuracy"],
    }
    accuracy = float(best["held_out_accuracy"])
    return write_run(root, algorithm, "line", seed, accuracy=accuracy, result=result, lr=lr, **config)


def a_plan(root: Path, runs: dict[tuple[str, int], list[Path]], id: str = "abcdef012345", **changes: Any) -> Plan:
    cells = {
        Cell("emoji", FINGERPRINT, algorithm, "line", seed): {
            number: PlannedDraw(number, {"lr": DRAWN[number]}, path.relative_to(root))
            for number, path in enumerate(paths)
        }
        for (algorithm, seed), paths in runs.items()
    }
    space = {"emoji": {algorithm: {"lr": {"range": "10^U(-5, -3.5)"}} for algorithm, _ in runs}}
    plan = Plan(id, "random", ("training", "oracle"), "steppe bench", {}, space, cells)
    return write_plan(root, replace(plan, **changes), say=print)


def searched(root: Path) -> None:
    """Two seeds of two algorithms, three draws each; the validation accuracy says the second, the oracle the third."""
    runs = {}
    for algorithm, better in (("erm", 0.0), ("sam", 0.1)):
        for seed in (0, 1):
            runs[algorithm, seed] = [
                trained(root, algorithm, seed, DRAWN[0], [row(50, 0.5, 0.3, 0.3), row(100, 0.4, 0.9, 0.1)]),
                trained(root, algorithm, seed, DRAWN[1], [row(50, 0.6, 0.4 + better), row(100, 0.7, 0.2 + 0.1 * seed)]),
                trained(root, algorithm, seed, DRAWN[2], [row(50, 0.1, 0.8, 0.9), row(100, 0.2, 0.6 + better, 0.5)]),
            ]
    a_plan(root, runs)


def only(root: Path, selection: str | None = None) -> Comparison:
    (comparison,) = summarise(load_selected(root, selection).runs).comparisons
    return comparison


def by_name(comparison: Comparison) -> dict[str, Method]:
    return {method.name: method for method in comparison.methods}


def shown(root: Path, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False)
    selected = load_selected(root)
    print_table(summarise(selected.runs), console)
    print_choices(selected.choices, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_number_is_a_mean_over_seeds_of_chosen_runs_never_over_draws(tmp_path: Path) -> None:
    searched(tmp_path)
    comparison = only(tmp_path)
    assert list(by_name(comparison)) == ["erm", "sam"]
    for method in comparison.methods:
        cell = method.cells["line"]
        assert (cell.held_out.n, cell.held_out.mean) == (2, pytest.approx(0.25)), "draw 1 at step 100, seeds 0 and 1"
        assert {run.config["lr"] for run in cell.runs} == {DRAWN[1]}
        assert "lr" not in method.settings
        assert method.settings["search"] == "3 random draws"
        assert method.settings["selection"] == "training-domain validation set"
        assert method.times_baseline is None
    oracle = by_name(only(tmp_path, "oracle"))
    assert oracle["erm"].cells["line"].held_out.mean == pytest.approx(0.6)
    assert oracle["sam"].cells["line"].held_out.mean == pytest.approx(0.7)
    assert {run.result["selected_step"] for run in oracle["sam"].runs} == {100}


def test_without_the_plan_draws_are_methods_of_their_own(tmp_path: Path) -> None:
    searched(tmp_path)
    (comparison,) = summarise(load_runs(tmp_path)).comparisons
    assert [method.seeds for method in comparison.methods] == ["2"] * 6


def test_runs_of_other_settings_stand_beside_a_search(tmp_path: Path) -> None:
    searched(tmp_path)
    for seed in (0, 1):
        write_run(tmp_path, "erm", "line", seed, accuracy=0.5, lr=0.1)
    methods = by_name(only(tmp_path))
    assert set(methods) == {"erm", "erm (search=3 random draws)", "sam"}
    assert methods["erm"].cells["line"].held_out.mean == 0.5


def test_two_sweeps_are_two_methods_even_where_they_are_called_the_same(tmp_path: Path) -> None:
    for number, (id, steps) in enumerate((("a" * 12, 200), ("b" * 12, 300))):
        runs = [trained(tmp_path, "erm", 0, lr, [row(1, 0.5, 0.1 * (number + 1))], steps=steps) for lr in DRAWN]
        a_plan(tmp_path, {("erm", 0): runs}, id)
    found = by_name(only(tmp_path))
    assert sorted(method.cells["line"].held_out.mean for method in found.values()) == [0.1, 0.2]
    assert all(f"steps={steps}" in " ".join(found) for steps in (200, 300))


def test_a_run_that_holds_out_two_domains_is_in_no_number(tmp_path: Path) -> None:
    write_run(tmp_path, "erm", "line", 0, accuracy=0.5)
    write_run(tmp_path, "erm", "line", 0, accuracy=0.9, validation_domain="noto")
    (method,) = only(tmp_path).methods
    assert (method.cells["line"].held_out.mean, len(method.runs)) == (0.5, 1)


def test_the_table_says_which_selection_and_what_was_chosen(tmp_path: Path) -> None:
    searched(tmp_path)
    text = shown(tmp_path)
    assert "\nbest of 3 random draws by training-domain validation set\n" in text
    rows = [line.split() for line in text.partition("Chosen hyper-parameters   emoji")[2].splitlines()]
    assert [row for row in rows if "lr" in row] == [
        [algorithm, "line", str(seed), "1", "100", f"{20 + 10 * seed}.0", "lr", "0.0002"]
        for algorithm in ("erm", "sam")
        for seed in (0, 1)
    ]
    assert all(len(line.rstrip()) <= 80 for line in shown(tmp_path, 80).splitlines())


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    searched(tmp_path)
    folders = sorted(tmp_path.glob("emoji/erm/line/*"))
    by_draw = {
        (config["seed"], config["lr"]): folder for folder in folders for config in [read(folder / "config.json")]
    }
    (by_draw[0, DRAWN[1]] / "result.json").unlink()
    gone = by_draw[1, DRAWN[1]]
    (gone / "result.json").unlink()
    (gone / "failure.json").write_text(json.dumps({"error": "out of memory"}))
    pruned = by_draw[1, DRAWN[2]]
    (pruned / "result.json").unlink()
    (pruned / "pruned.json").write_text("{}")
    selected = load_selected(tmp_path)
    assert selected.runs.notes == [
        "Draws passed over in the selection: 1 failed, 1 pruned.",
        "1 cell is not complete, and chosen among the draws that are there. training-domain validation set, "
        "erm on emoji, line held out, seed 0, draw 1: no finished run holds out line alone",
    ]
    assert [(choice.cell.algorithm, choice.cell.seed, choice.draw) for choice in selected.choices] == [
        ("erm", 0, 0),
        ("sam", 0, 1),
        ("erm", 1, 0),
        ("sam", 1, 1),
    ]
    text = " ".join(shown(tmp_path).split())
    for part in ("1 run not finished", "1 run failed", "1 run pruned by a search", "1 failed, 1 pruned"):
        assert part in text


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_selections_side_by_side(tmp_path: Path) -> None:
    searched(tmp_path)
    console = Console(file=io.StringIO(), width=100, markup=False)
    summaries = {name: summarise(load_selected(tmp_path, name).runs) for name in ("training", "oracle")}
    print_selections(summaries, console)
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["erm", "25.0", "±", "5.0", "60.0", "±", "0.0"] in lines


def test_the_page_shows_the_chosen_runs(tmp_path: Path) -> None:
    searched(tmp_path)
    page = write_page(tmp_path, tmp_path / "page.html").read_text()
    assert "training-domain validation set" in page
    assert "3 random draws" in page
    chosen = {choice.run.id for choice in load_selected(tmp_path).choices}
    others = {run.id for run in load_runs(tmp_path)} - chosen
    assert all(id in page for id in chosen)
    assert not [id for id in others if id in page]
