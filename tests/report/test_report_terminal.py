"""The table in a terminal of 80 columns: all numbers, none cut."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from made_up_runs import STYLES, write_benchmark, write_run
from rich.cells import cell_len
from rich.console import Console

from steppe.report import load_runs, print_table, summarise
from steppe.report.ranking import spread

LONG = ("a_domain_with_quite_a_long_name", "art_painting", "clipart", "photograph", "quickdraw", "sketch")
METHODS = ("erm", "sam", "asam", "gsam", "sagm", "disam", "disam+sagm", "coral+disam+sagm+lookahead")


def printed(root: Path, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_table(summarise(load_runs(root)), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("algorithms", "domains", "held_out"),
    [
        (("erm", "sam", "disam"), STYLES, ("fluent", "line")),
        (METHODS, STYLES, STYLES),
        (METHODS, LONG, LONG),
        (("erm",), STYLES, ("line",)),
    ],
)
def test_every_number_is_there_whole_within_80_columns(
    tmp_path: Path, algorithms: tuple[str, ...], domains: tuple[str, ...], held_out: tuple[str, ...], seeds: int
) -> None:
    write_benchmark(tmp_path, algorithms, held_out, seeds, domains=domains)
    text = printed(tmp_path)
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    (comparison,) = summarise(load_runs(tmp_path)).comparisons
    for method in comparison.methods:
        for cell in method.cells.values():
            assert re.search(rf"(?<![\d.]){re.escape(spread(cell.held_out))}(?![\d.])", text)
        for average in (method.average, method.average_everything, method.average_in_domain):
            assert average is not None
            assert re.search(rf"(?<![\d.]){re.escape(spread(average))}(?![\d.])", text)
    assert ("±" in text) == (seeds > 1)


def test_the_demo_with_one_seed_is_one_table(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1)
    lines = printed(tmp_path).splitlines()
    heads = [line.split() for line in lines if "s/step" in line]
    assert heads == [["fluent", "line", "average", "in-domain", "all", "pictures", "s/step", "seeds"]]
    row = next(line for line in lines if line.startswith("disam "))
    assert "0.620 (2.00×)" in row
    assert row.rstrip().endswith("1")


def test_a_method_without_a_run_has_a_dash(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1)
    write_run(tmp_path, "asam", "line", accuracy=0.42)
    row = next(line for line in printed(tmp_path).splitlines() if line.startswith("asam"))
    assert row.split()[1:3] == ["–", "42.0"]


def test_what_is_unfinished_failed_or_unreadable_is_said(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1)
    write_run(tmp_path, "sam", "line", 5, finished=False)
    failed = write_run(tmp_path, "sam", "line", 6, finished=False)
    (failed / "failure.json").write_text(json.dumps({"error": "loss is NaN", "traceback": "..."}))
    broken = write_run(tmp_path, "sam", "line", 7)
    (broken / "result.json").write_text("{")
    text = printed(tmp_path, width=300)
    assert "1 run not finished" in text
    assert "loss is NaN" in text
    assert str(broken / "result.json") in text


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    write_run(tmp_path, "[bold]sam[/bold]", "[red]line", domains=("[red]line", "noto"), accuracy=0.5)
    text = printed(tmp_path)
    assert "[bold]sam[/bold]" in text
    assert "[red]line" in text


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    assert printed(tmp_path).strip() == "No finished runs."


def test_a_number_and_its_sign_stay_on_one_line(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1)
    for width in range(30, 90):
        text = printed(tmp_path, width)
        headline = text[text.index("On domains never seen") : text.index("One seed")]
        assert not any(line.lstrip().startswith("%") for line in headline.splitlines())
        assert "\N{NO-BREAK SPACE}%" in headline
