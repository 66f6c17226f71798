"""The largest radius: the bisection against a known threshold, the criterion, and that nothing is trained twice."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small_config

from steppe.benchmark import largest_radius as module
from steppe.benchmark.executor import InProcess
from steppe.benchmark.largest_radius import bisect, largest_radius
from steppe.benchmark.radii import FOLDER, LargestRadius, Trial, found_radii
from steppe.benchmark.store import Store, record_failure
from steppe.data import open_dataset
from steppe.errors import SteppeError
from steppe.training import Machine, Settings
from steppe.training.progress import Silent

SMALL = {
    name: getattr(small_config("x"), name)
    for name in ("backbone", "pretrained", "frozen_batch_norm", "image_size", "batch_per_domain", "optimizer", "lr")
}


@given(st.floats(0.011, 4.9), st.floats(1.02, 2))
def test_the_threshold_lies_between_what_trains_and_what_does_not(threshold: float, factor: float) -> None:
    asked: list[float] = []

    def trains(rho: float) -> bool:
        asked.append(rho)
        return rho <= threshold

    good, bad = bisect(trains, low=0.01, high=5.0, factor=factor)
    assert good is not None
    assert bad is not None
    assert good <= threshold < bad
    assert bad <= factor * good * 1.01  # three digits
    assert len(asked) == len(set(asked)) <= 3 + math.log2(math.log(500) / math.log(factor))
    assert all(float(f"{rho:.3g}") == rho for rho in asked)


def test_the_ends_of_the_search() -> None:
    assert bisect(lambda rho: False, low=0.01, high=1, factor=1.1) == (None, 0.01)
    assert bisect(lambda rho: True, low=0.01, high=1, factor=1.1) == (1.0, None)
    good, bad = bisect(lambda rho: rho < 0.0105, low=0.01, high=1, factor=1.0001)  # finer than three digits
    assert (good, bad) == (pytest.approx(0.0105, rel=1e-2), pytest.approx(0.0105, rel=1e-2))


@pytest.mark.parametrize("wrong", [{"low": 0}, {"low": 2}, {"high": math.inf}, {"factor": 1}])
def test_a_search_that_cannot_be_made(wrong: dict[str, float]) -> None:
    with pytest.raises(SteppeError, match=r"0 < low < high|larger than 1"):
        bisect(lambda rho: True, **{"low": 0.01, "high": 1, "factor": 1.1, **wrong})


def search(drawings: Path, root: Path, **options: object) -> LargestRadius:
    dataset = open_dataset(drawings)
    arguments = {"algorithm": "sam", "held_out": "line", "low": 0.01, "high": 50.0, "factor": 3.0, **options}
    executor = InProcess(dataset, Machine(), Silent(), "test")
    settings = arguments.pop("settings", Settings(**SMALL, steps=30, eval_every=30))
    return largest_radius(dataset, executor, Store(root), settings=settings, **arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_real_runs_and_the_same_search_again(drawings: Path, tmp_path: Path) -> None:
    settings = replace(Settings(**SMALL, steps=60, eval_every=60), lr=3e-3)
    first = search(drawings, tmp_path, settings=settings, threshold=0.8)
    assert first.trains is not None
    assert first.fails is not None
    assert first.fails <= 3.1 * first.trains
    # Every verdict is what the run's own log says.
    for trial in first.trials:
        (folder,) = [
            path.parent
            for path in tmp_path.rglob("config.json")
            if json.loads(path.read_text())["hyper"]["sam.rho" if "sam.rho" in path.read_text() else "rho"] == trial.rho
        ]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = [line["loss"] for line in lines if line["kind"] == "train" and line["step"] > 54]
        assert trial.shares == (pytest.approx(sum(last) / len(last) / math.log(3)),)
        assert trial.trains == (trial.shares[0] < 0.8)  # type: ignore[operator]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert search(drawings, tmp_path, settings=settings, threshold=0.8) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == stamps
    assert list(found_radii(tmp_path)) == [first]


def test_a_loss_that_is_not_finite_does_not_train_and_is_not_tried_again(drawings: Path, tmp_path: Path) -> None:
    settings = replace(Settings(**SMALL, steps=6, eval_every=3), lr=1e30, optimizer="sgd")
    found = search(drawings, tmp_path, settings=settings)
    assert (found.trains, found.fails) == (None, 0.01)
    assert found.trials == (Trial(0.01, False, (None,)),)
    (failure,) = tmp_path.rglob("failure.json")
    stamp = failure.stat().st_mtime_ns
    assert search(drawings, tmp_path, settings=settings) == found
    assert failure.stat().st_mtime_ns == stamp


def test_more_than_half_of_the_seeds_must_train(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {(0.01, 0): 0.1, (0.01, 1): 0.1, (50.0, 0): 0.1, (50.0, 1): 2.0}
    monkeypatch.setattr(module, "_do", lambda planned, executor: None)
    made: list[tuple[float, int]] = []

    def last(directory: Path, steps: int) -> float:
        made.append(wanted[directory])
        return losses[wanted[directory]]

    wanted: dict[Path, tuple[float, int]] = {}
    planned = module.jobs

    def jobs(store: Store, dataset: object, configs: list[object]) -> list[object]:
        found = planned(store, dataset, configs)  # type: ignore[arg-type]
        wanted.update({job.directory: (job.config.rho or 0, job.config.seed) for job in found})
        return found  # type: ignore[return-value]

    monkeypatch.setattr(module, "jobs", jobs)
    monkeypatch.setattr(module, "_last_loss", last)
    found = search(drawings, tmp_path, seeds=2, factor=6000)
    assert (found.trains, found.fails) == (0.01, 50.0)
    assert sorted(made) == sorted(losses)


def test_a_run_that_fails_for_another_reason_stops_the_search(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(self: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr("steppe.training.trainer.Trainer.fit", crash)
    with pytest.raises(SteppeError, match=r"not for its loss.*out of memory"):
        search(drawings, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "erm"}, "erm has no radius rho"),
        ({"algorithm": "tram"}, "tram has no radius rho"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"threshold": 1.5}, "threshold must be between 0 and 1"),
    ],
)
def test_what_cannot_be_searched(drawings: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(SteppeError, match=message):
        search(drawings, tmp_path, **options)
    assert not list(tmp_path.rglob("config.json"))


def test_records_that_are_damaged_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for number, text in enumerate(["{", "[]", "{}", '{"trials": 3, "settings": {}}', '{"trials": [], "settings": {}}']):
        (folder / f"{number}.json").write_text(text)
    assert list(found_radii(tmp_path)) == []
    assert list(found_radii(tmp_path / "nowhere")) == []


def test_a_metrics_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match=r"cannot read .*metrics\.jsonl"):
        module._last_loss(tmp_path, 10)
    record_failure(tmp_path, ValueError("other"), "test")
    with pytest.raises(SteppeError, match=r"metrics\.jsonl"):
        module._last_loss(tmp_path, 10)
