"""The runs as a data frame: the files' numbers, one row a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_runs import write_benchmark, write_run

from steppe.report import load_runs
from steppe.report.frame import MEASURED, run_frame

polars = pytest.importorskip("polars")


def test_a_row_has_what_the_files_say(tmp_path: Path) -> None:
    write_benchmark(tmp_path, ("erm", "disam"), seeds=2)
    found = run_frame(load_runs(tmp_path))
    assert found.height == 8
    for row in found.iter_rows(named=True):
        folder = tmp_path / "emoji" / row["algorithm"] / row["held_out"] / row["id"]
        assert row["path"] == folder.as_posix()
        result, config = (json.loads((folder / name).read_text()) for name in ("result.json", "config.json"))
        assert {name: row[name] for name in MEASURED} == {name: result[name] for name in MEASURED}
        assert (row["seed"], row["lr"], row["optimizer"]) == (config["seed"], config["lr"], config["optimizer"])
        assert row["hyper.lam"] == config["hyper"].get("lam")


def test_it_answers_questions(tmp_path: Path) -> None:
    write_benchmark(tmp_path, ("erm", "disam"), seeds=2)
    runs = load_runs(tmp_path)
    means = run_frame(runs).group_by("algorithm").agg(polars.col("held_out_accuracy").mean())
    for name, mean in means.iter_rows():
        values = [run.held_out_accuracy for run in runs if run.algorithm == name]
        assert mean == pytest.approx(sum(values) / 4)


def test_columns_of_several_kinds(tmp_path: Path) -> None:
    for seed, (lr, extra) in enumerate(((1, "a"), (0.5, 3), (2, None))):
        write_run(tmp_path, "erm", "line", seed, lr=lr, extra=extra)
    found = run_frame(load_runs(tmp_path)).sort("seed")
    assert found["lr"].to_list() == [1.0, 0.5, 2.0]
    assert found["extra"].to_list() == ["a", "3", None]


def test_no_runs_no_rows(tmp_path: Path) -> None:
    assert run_frame(load_runs(tmp_path)).height == 0
