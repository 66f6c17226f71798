"""The program that compares the demo in one and two processes: its table, on made-up stores."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from made_up_runs import write_run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("one_and_two_processes")


def made(root: Path, accuracy: float, losses: dict[str, list[float]]) -> Path:
    """A store in which these algorithms have finished, with a loss for each step."""
    for algorithm, curve in losses.items():
        directory = write_run(root, algorithm, accuracy=accuracy)
        lines = [{"kind": "train", "step": step, "loss": loss} for step, loss in enumerate(curve, start=1)]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"kind": "eval", "step": len(curve)}])
        (directory / "metrics.jsonl").write_text(text)
    return root


def test_the_table_has_accuracies_and_the_largest_differences_over_all_runs(program, tmp_path: Path) -> None:
    one = made(tmp_path / "one", 0.5, {"erm": [2.0] * 7, "sam": [3.0] * 7})
    two = made(tmp_path / "two", 0.625, {"erm": [2.0, 2.25, 2, 2, 2, 2.75, 2.5], "sam": [3.125, *[3] * 5, 2]})
    head, _, *rows = [line.strip("| ").split(" | ") for line in program.table({"a": one, "b": two}).splitlines()]
    assert head == ["way", "erm, line", "sam, line", "loss, step 1", "loss, steps 1 to 5", "loss, step 7"]
    assert rows == [
        ["a", "50.0", "50.0", "0.0e+00", "0.0e+00", "0.0e+00"],
        ["b", "62.5", "62.5", "1.2e-01", "2.5e-01", "1.0e+00"],
    ]


def test_stores_of_different_runs_are_not_compared(program, tmp_path: Path) -> None:
    one = made(tmp_path / "one", 0.5, {"erm": [2.0] * 7})
    with pytest.raises(ValueError, match="not the same"):
        program.table({"a": one, "b": made(tmp_path / "two", 0.5, {"erm": [2.0] * 6})})
