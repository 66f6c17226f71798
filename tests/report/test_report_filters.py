"""--only: exactly the runs that were meant, and a complaint for what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_runs import write_benchmark, write_run

from steppe.errors import SteppeError
from steppe.report import load_runs
from steppe.report.filters import only
from steppe.report.plans import open_runs


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_benchmark(tmp_path, ("erm", "sam", "disam"), ("fluent", "line"), seeds=3)
    write_benchmark(tmp_path, ("sam",), ("line",), seeds=2, lr=1e-3)
    write_run(tmp_path, "sam", "line", 0, hyper={"rho": 0.2}, dataset="photos")
    write_run(tmp_path, "disam+sagm", "line", 0, hyper={"rho": 0.1, "disam.lam": 0.3, "sagm.alpha": 0.002})
    return tmp_path


@pytest.mark.parametrize(
    ("words", "keep"),
    [
        ([], lambda config: True),
        (["held-out=line"], lambda config: config["held_out"] == "line"),
        (["held_out=line"], lambda config: config["held_out"] == "line"),
        (["seed=0,2"], lambda config: config["seed"] in (0, 2)),
        (["seed=0", "seed=2"], lambda config: config["seed"] in (0, 2)),
        (["algorithm=erm,sam", "seed=1"], lambda config: config["algorithm"] in ("erm", "sam") and config["seed"] == 1),
        (["algorithm=sagm+disam"], lambda config: config["algorithm"] == "disam+sagm"),
        (["dataset=photos"], lambda config: config["dataset"] == "photos"),
        (["lr=1e-3"], lambda config: config["lr"] == 1e-3),
        (["lr=0.001"], lambda config: config["lr"] == 1e-3),
        (["rho=0.05"], lambda config: config["hyper"].get("rho") == 0.05),
        (["lam=0.3"], lambda config: config["hyper"].get("disam.lam") == 0.3),
        (["backbone=efficientnet_lite0"], lambda config: True),
    ],
)  # fmt: skip
def test_exactly_the_runs_that_were_meant(store: Path, words: list[str], keep) -> None:  # type: ignore[no-untyped-def]
    configs = [json.loads(path.read_text()) for path in store.rglob("config.json")]
    wanted = sorted(json.dumps(config, sort_keys=True) for config in configs if keep(config))
    found = sorted(json.dumps(dict(run.config), sort_keys=True) for run in open_runs(store, words))
    assert wanted
    assert found == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["held-out=lime"], "unknown held-out 'lime'; did you mean 'line'"),
        (["seed=9"], "unknown seed '9'"),
        (["seeds=1"], "unknown field 'seeds'; did you mean 'seed'"),
        (["line"], "KEY=VALUE"),
        (["seed="], "KEY=VALUE"),
        (["=0"], "KEY=VALUE"),
        (["algorithm=erm", "rho=0.2"], "no run in .* has all of: algorithm=erm rho=0.2"),
    ],
)
def test_what_is_not_there_is_named(store: Path, words: list[str], message: str) -> None:
    with pytest.raises(SteppeError, match=message):
        open_runs(store, words)


def test_a_bare_name_is_every_word_s(tmp_path: Path) -> None:
    write_run(tmp_path, "gsam", "line", 0, hyper={"gsam.alpha": 0.4})
    write_run(tmp_path, "gsam", "line", 0, hyper={"gsam.alpha": 0.1})
    write_run(tmp_path, "sagm", "line", 0, hyper={"sagm.alpha": 0.1, "rho": 0.1})
    assert sorted(run.algorithm for run in open_runs(tmp_path, ["alpha=0.1"])) == ["gsam", "sagm"]
    assert [run.algorithm for run in open_runs(tmp_path, ["sagm.alpha=0.1"])] == ["sagm"]
    assert [run.algorithm for run in open_runs(tmp_path, ["rho=0.1"])] == ["sagm"]


def test_what_else_lies_in_the_store_is_still_told(store: Path) -> None:
    unfinished = write_run(store, "erm", "line", 8, finished=False)
    runs = only(["algorithm=sam"]).of(load_runs(store))
    assert runs.unfinished == [unfinished]
    assert runs.root == store


def test_an_empty_store_stays_empty(tmp_path: Path) -> None:
    assert list(open_runs(tmp_path, ["seed=0"])) == []


def test_the_runs_of_one_sweep(store: Path) -> None:
    runs = load_runs(store)
    chosen = [run.id for run in runs if run.algorithm == "sam"]
    failed = write_run(store, "sam", "line", 9, finished=False)
    (failed / "failure.json").write_text(json.dumps({"error": "boom"}))
    plan = store / "sweeps" / "0123456789ab"
    plan.mkdir(parents=True)
    where = {run.id: run.path.relative_to(store).as_posix() for run in runs}
    where[failed.name] = failed.relative_to(store).as_posix()
    cells = [
        {"dataset": "emoji", "fingerprint": "0123456789ab", "algorithm": "sam", "held_out": "line", "seed": number,
         "draws": [{"draw": 0, "values": {}, "run": {"id": run, "path": where[run]}}]}
        for number, run in enumerate([*chosen, failed.name])
    ]  # fmt: skip
    written = {"version": 1, "id": "0123456789ab", "command": "steppe bench", "search": "", "selection": ["training"]}
    (plan / "sweep.json").write_text(json.dumps({**written, "settings": {}, "space": {}, "cells": cells}))
    for place in (plan, plan / "sweep.json"):
        found = open_runs(place)
        assert sorted(run.id for run in found) == sorted(chosen)
        assert [failure.path for failure in found.failures] == [failed]
        assert found.root == store
    assert {run.seed for run in open_runs(plan, ["seed=0"])} == {0}
    assert len(open_runs(store)) == len(runs)


def test_a_plan_that_is_damaged_or_empty_is_named(store: Path) -> None:
    plan = store / "sweeps" / "x"
    plan.mkdir(parents=True)
    for content in ("{", "{}", "[]"):
        (plan / "sweep.json").write_text(content)
        with pytest.raises(SteppeError, match=r"sweep\.json"):
            open_runs(plan)
