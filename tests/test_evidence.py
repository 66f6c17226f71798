"""The programs behind docs/results.md: what a search chooses, and runs that are kept and extended."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from steppe.benchmark.plan import Cell, Plan, PlannedDraw, write_plan
from steppe.cli.commands import Bench
from steppe.cli.parse import parse as parse_command
from steppe.training.config import Settings
from steppe.training.recipes import check_taken
from steppe.training.results import FIELDS

EVIDENCE = Path(__file__).parents[1] / "examples" / "evidence"
SETTINGS = Settings(steps=200, hyper={"lookahead.k": "5"})
PICTURES = 240


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a module of the examples, which are programs rather than a package."""
    monkeypatch.syspath_prepend(str(EVIDENCE))
    return importlib.import_module


@pytest.fixture
def choosing(load) -> ModuleType:
    return load("choosing")


def finished(directory: Path, validation: float, held_out: str) -> None:
    plain: dict[Any, Any] = {str: "", int: 0, dict: {}}
    content = {name: plain.get(kind, 0.5) for name, kind in FIELDS.items()}
    counts = {held_out: {"test": 1000, "validation": 77}, "a": {"validation": 140}, "b": {"validation": 100}}
    directory.mkdir(parents=True)
    content |= {"version": 1, "held_out": held_out, "validation_accuracy": validation, "counts": counts}
    (directory / "result.json").write_text(json.dumps(content))


def searched(
    root: Path,
    accuracies: Mapping[str, Sequence[float | None]],
    *,
    algorithm: str = "disam+lookahead",
    settings: Settings = SETTINGS,
    id: str = "a",
) -> None:
    """A search as it leaves it: held-out domain → the validation accuracy of each draw; ``None`` for a failed one."""
    cells = {}
    for held_out, scores in accuracies.items():
        draws = {}
        for number, score in enumerate(scores):
            run = Path("made-up", algorithm, held_out, f"{id}-{number}")
            draws[number] = PlannedDraw(number, {"disam.lam": number / 10}, run)
            if score is None:
                (root / run).mkdir(parents=True)
                (root / run / "failure.json").write_text("{}")
            elif score >= 0:
                finished(root / run, score, held_out)
        cells[Cell("made-up", "0", algorithm, held_out, 0)] = draws
    write_plan(root, Plan(id, "random", ("training",), "", asdict(settings), {}, cells), say=print)


def test_a_draw_is_taken_over_the_published_values_only_by_more_than_the_margin(
    choosing: ModuleType, tmp_path: Path
) -> None:
    assert choosing.margin(0.9, PICTURES) == pytest.approx(0.0274, abs=1e-4)
    cases = {"within": (0.9, 0.95, 0.9, 0.9, 0), "beyond": (0.9, 0.96, 0.9, 0.9, 1), "mean": (0.9, 1.0, 0.9, 0.8, 0)}
    for name, (line, line_1, fluent, fluent_1, expected) in cases.items():
        searched(tmp_path / name, {"line": [line, line_1], "fluent": [fluent, fluent_1]})
        # Whatever the order of its words: the plan has the canonical name.
        choice = choosing.choose(tmp_path / name, SETTINGS, "lookahead+disam", ("line", "fluent"))
        assert (choice.draw, choice.values["disam.lam"]) == (expected, expected / 10), name
        assert {run.name for run in choice.runs} == {f"a-{expected}"}
        assert len(choice.runs) == 2


def test_a_draw_that_failed_for_some_domain_is_passed_over(choosing: ModuleType, tmp_path: Path) -> None:
    held_out = ("line", "fluent")
    searched(tmp_path / "best", {"line": [0.5, 0.99, 0.7], "fluent": [0.5, None, 0.7]})
    assert choosing.choose(tmp_path / "best", SETTINGS, "disam+lookahead", held_out).draw == 2
    searched(tmp_path / "published", {"line": [None, 0.3, 0.31], "fluent": [0.5, 0.3, 0.3]})
    assert choosing.choose(tmp_path / "published", SETTINGS, "disam+lookahead", held_out).draw == 2
    searched(tmp_path / "all", {"line": [None, None], "fluent": [0.5, 0.5]})
    assert choosing.choose(tmp_path / "all", SETTINGS, "disam+lookahead", held_out) is None


def test_only_the_search_with_the_present_settings_counts(choosing: ModuleType, tmp_path: Path) -> None:
    searched(tmp_path, {"line": [0.5, 0.5]})
    searched(tmp_path, {"line": [0.5, 0.9]}, settings=Settings(steps=100), id="b")
    searched(tmp_path, {"line": [0.5, 0.9]}, algorithm="erm", id="c")
    assert choosing.choose(tmp_path, SETTINGS, "disam+lookahead", ("line",)).draw == 0
    assert choosing.choose(tmp_path, Settings(steps=100), "disam+lookahead", ("line",)).draw == 1
    with pytest.raises(SystemExit, match="0 searches of sam"):
        choosing.choose(tmp_path, SETTINGS, "sam", ("line",))
    searched(tmp_path, {"line": [0.5, 0.5]}, id="d")
    with pytest.raises(SystemExit, match="2 searches"):
        choosing.choose(tmp_path, SETTINGS, "disam+lookahead", ("line",))


def test_a_search_that_is_not_over_chooses_nothing(choosing: ModuleType, tmp_path: Path) -> None:
    searched(tmp_path, {"line": [0.5, 0.9, -1]})
    with pytest.raises(SystemExit, match="a-2 is new: give the command again"):
        choosing.choose(tmp_path, SETTINGS, "disam+lookahead", ("line",))


@pytest.mark.parametrize("path", sorted(EVIDENCE.glob("*.toml")), ids=lambda path: path.stem)
def test_the_settings_are_understood_and_every_algorithm_takes_what_is_fixed_for_it(load, path: Path) -> None:
    program = load("evidence")
    asked = program.command(path)
    assert isinstance(asked, Bench)
    for algorithm in asked.algorithms:
        fixed = program.fixed_hyper(algorithm, asked.settings)
        check_taken([algorithm], fixed)
        assert ("vrex.anneal_steps" in fixed) == ("vrex" in algorithm.split("+"))
        assert ("lookahead.k" in fixed) == ("lookahead" in algorithm.split("+"))
        arguments = program.one(algorithm, 1e-3, fixed)
        settings = program.command(path, *arguments).settings
        assert {name: float(value) for name, value in settings.hyper.items()} == fixed
    if path.stem != "full":
        assert program.SEARCHED[asked.dataset[0]]


def test_only_a_failed_run_is_no_reason_to_stop(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = load("evidence")
    options = program.Options(EVIDENCE / "reduced.toml", tmp_path)
    for status in (0, 1):
        monkeypatch.setattr(subprocess, "run", lambda *a, status=status, **k: subprocess.CompletedProcess(a, status))
        program.bench(options, "sweep")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 2))
    with pytest.raises(SystemExit, match="2"):
        program.bench(options, "sweep")


def test_kept_runs_are_a_store_that_can_be_extended(load, drawings: Path, tmp_path: Path) -> None:
    small = [
        *("--backbone", "test_resnet", "--no-pretrained", "--no-frozen-batch-norm", "--image-size", "32"),
        *("--batch-per-domain", "3", "--steps", "4", "--eval-every", "2", "--held-out", "line"),
    ]

    def bench(root: Path, seeds: int) -> str:
        words = ["bench", str(drawings), "--algorithms", "erm", "--seeds", str(seeds), *small, "--out", str(root)]
        assert isinstance(parse_command(words), Bench)
        done = subprocess.run(
            [sys.executable, "-m", "steppe", *words],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "120"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    bench(tmp_path / "made" / "sweep", 1)
    (tmp_path / "made" / "chosen.toml").write_text("lr = 0.001\n")
    archive, again = tmp_path / "kept" / "made.tar.xz", tmp_path / "again.tar.xz"
    assert load("keep").pack(tmp_path / "made", archive) == 1
    load("keep").pack(tmp_path / "made", again)
    assert archive.read_bytes() == again.read_bytes()
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    root = tmp_path / "unpacked" / "made"
    assert {path.name for path in root.rglob("*") if path.is_file()} == {"config.json", "result.json", "chosen.toml"}

    (before,) = (path.read_bytes() for path in root.rglob("result.json"))
    report = subprocess.run(
        [sys.executable, "-m", "steppe", "report", str(root / "sweep")], capture_output=True, text=True
    )
    assert report.returncode == 0, report.stderr
    assert "1 run, of which 1 finished already" in bench(root / "sweep", 1)
    assert "2 runs, of which 1 finished already" in bench(root / "sweep", 2)
    results = [path.read_bytes() for path in root.rglob("result.json")]
    assert len(results) == 2
    assert before in results
