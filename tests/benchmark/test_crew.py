"""The driver's loop with workers that exist in memory only, so that thousands of courses of events can be played."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import write_run

from steppe.benchmark.executor import Outcome
from steppe.benchmark.executors import crew
from steppe.benchmark.executors.crew import FRUITLESS_STARTS, Crew
from steppe.benchmark.executors.events import Ended, Event, Lost, Ready, Refused, Setup, Told
from steppe.benchmark.protocol import Job
from steppe.benchmark.store import record_failure
from steppe.data import DomainDataset, open_dataset
from steppe.errors import SteppeError
from steppe.training import Machine, OutputError, RunConfig
from steppe.training.files import run_lock
from steppe.training.progress import Silent

MOST = 3


class Puppet:
    """A worker that does what chance says."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.job: Job | None = None
        self.ready = False
        self.gone = False
        self.spoilt = False

    def begin(self, job: Job) -> None:
        assert self.ready
        assert not self.spoilt
        assert self.job is None
        if self.gone:
            raise BrokenPipeError
        self.job = job

    def stop(self) -> None:
        pass

    def end(self) -> None:
        self.gone = True


class Puppets(Crew[Puppet]):
    """At every look each worker does one thing: come up, finish, fail, find its run busy, or die."""

    def __init__(self, dataset: DomainDataset, chance: random.Random, dying: float, **options: Any) -> None:
        super().__init__(dataset, Machine(), Silent(), "test", **options)
        self.chance, self.dying = chance, dying
        self.done: set[Path] = set()
        self.deaths: Counter[Path] = Counter()

    def _hire(self, place: int, setup: Setup) -> Puppet | None:
        if len(self._workers()) >= MOST:
            return None
        assert place not in {worker.place for worker in self._workers()}
        return Puppet(place)

    def _events(self, seconds: float) -> list[tuple[Puppet, Event]]:
        jobs = [worker.job.directory for worker in self._working if worker.job is not None]
        assert len(jobs) == len(set(jobs)), "two workers on one run"
        return [(worker, event) for worker in self._workers() for event in self._act(worker)]

    def _act(self, worker: Puppet) -> list[Event]:
        fate = self.chance.random()
        if fate < self.dying:
            worker.gone = True
            if worker.job is not None:
                self.deaths[worker.job.directory] += 1
            return [Lost("its worker died")]
        if not worker.ready:
            worker.ready = True
            return [Ready()]
        if worker.job is None or fate < 0.6:
            return []
        job, worker.job = worker.job, None
        if fate < 0.7:
            return [Ended("busy")]
        if fate < 0.75:
            worker.spoilt = self.chance.random() < 0.5
            return [Ended("failed", "it was meant to", spoilt=worker.spoilt)]
        self.done.add(job.directory)
        return [Told("say", ("nearly done",)), Ended("finished")]

    def _outcome(self, job: Job, ended: Ended) -> Outcome:
        if ended.status == "finished":
            assert job.directory in self.done
            return Outcome(job, "finished")
        return Outcome(job, "failed", error=ended.error)


def jobs(root: Path, count: int) -> list[Job]:
    return [Job(RunConfig(held_out="line", seed=seed), root / str(seed)) for seed in range(count)]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 9),
    dying=st.sampled_from([0.0, 0.1, 0.3]),
    retries=st.integers(0, 2),
)
def test_every_run_has_one_outcome_whatever_becomes_of_the_workers(
    seed: int, count: int, dying: float, retries: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "HELD_SECONDS", 0.0)
        patch.setattr(crew, "FRUITLESS_STARTS", 10**6)  # chance alone may look like a machine on which nothing comes up
        runs = jobs(tmp_path_factory.mktemp("runs"), count)
        with Puppets(open_dataset("emoji"), random.Random(seed), dying, retries=retries) as puppets:
            outcomes = list(puppets.run(runs))
    assert sorted(o.job.directory for o in outcomes) == sorted(job.directory for job in runs)
    for outcome in outcomes:
        directory = outcome.job.directory
        given_up = (directory / "failure.json").exists()
        assert given_up == (puppets.deaths[directory] > retries)
        assert given_up == ("the run lost its worker" in outcome.error)


def test_a_machine_on_which_no_worker_comes_up_is_said(tmp_path: Path) -> None:
    puppets = Puppets(open_dataset("emoji"), random.Random(0), dying=1.0)
    with (
        puppets,
        pytest.raises(SteppeError, match=f"no worker comes up, {FRUITLESS_STARTS} tries in a row"),
    ):
        list(puppets.run(jobs(tmp_path, 2)))


def test_what_a_worker_refuses_is_raised_as_what_it_was(tmp_path: Path) -> None:
    class Refusing(Puppets):
        def _act(self, worker: Puppet) -> list[Event]:
            return [Refused.because(OutputError("the disk is full"))]

    with Refusing(open_dataset("emoji"), random.Random(0), 0.0) as puppets, pytest.raises(OutputError, match="disk is"):
        list(puppets.run(jobs(tmp_path, 2)))


def test_a_run_that_another_driver_finishes_meanwhile_is_not_given_up(tmp_path: Path) -> None:
    write_run(tmp_path / "store")
    (finished,) = (path.parent for path in (tmp_path / "store").rglob("result.json"))
    job = Job(RunConfig(held_out="line"), finished)

    class Dying(Puppets):
        def _act(self, worker: Puppet) -> list[Event]:
            if worker.ready:
                return [Lost("its worker died")]
            worker.ready = True
            return [Ready()]

        _outcome = Crew._outcome

    with Dying(open_dataset("emoji"), random.Random(0), 0.0, retries=0) as puppets:
        (outcome,) = puppets.run([job])
    assert outcome.status == "finished"
    assert outcome.result is not None
    assert not (finished / "failure.json").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_another_driver_is_at_is_waited_for(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "HELD_SECONDS", 0.01)
    said: list[str] = []

    class Busy(Puppets):
        looks = 0

        def _act(self, worker: Puppet) -> list[Event]:
            if not worker.ready:
                worker.ready = True
                return [Ready()]
            if worker.job is None:
                self.looks += 1
                if self.looks == 20:
                    if fails:
                        record_failure(wanted.directory, ValueError("the other's reason"), "the other")
                    lock.__exit__(None, None, None)
                return []
            job, worker.job = worker.job, None
            if self.looks < 20:
                return [Ended("busy")]
            self.done.add(job.directory)
            return [Ended("finished")]

    class Listening(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    (wanted,) = jobs(tmp_path, 1)
    lock = run_lock(wanted.directory)
    lock.__enter__()
    with Busy(open_dataset("emoji"), random.Random(0), 0.0) as puppets:
        puppets.report = Listening()
        (outcome,) = puppets.run([wanted])
    expected = ("failed", "the other's reason") if fails else ("finished", "")
    assert (outcome.status, outcome.error) == expected
    assert said == [f"waiting for another process that is training {wanted.directory}"]
