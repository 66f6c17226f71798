"""Runs in processes of this machine: the same bits, whoever is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from small_sweeps import (
    MACHINE,
    Watching,
    assert_trained_once,
    bench,
    checkpoints,
    ended,
    family,
    finish,
    left,
    names,
    planned,
    undisturbed,
)

from steppe.benchmark.execution import Execution, make_executor
from steppe.benchmark.executors.budget import cores
from steppe.benchmark.executors.local import LocalProcesses
from steppe.benchmark.store import status
from steppe.data import open_dataset
from steppe.errors import SteppeError
from steppe.training import Interrupted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a sweep that nothing disturbed, in one process."""
    root = tmp_path_factory.mktemp("whole")
    undisturbed(drawings, root)
    return root


def local(drawings: Path, report: Watching, jobs: int = 2, retries: int = 2) -> LocalProcesses:
    return LocalProcesses(open_dataset(drawings), MACHINE, report, "test", jobs=jobs, retries=retries)


def worker(executor: LocalProcesses, place: int) -> int:
    return next(one.pid for one in executor._workers() if one.place == place)


def test_killed_workers_are_replaced_and_the_bits_are_those_of_one_process(
    drawings: Path, whole: Path, tmp_path: Path
) -> None:
    moments = random.Random(4)
    kills: list[str] = []

    def happens(place: int, what: str, step: int) -> None:
        # Some time after a run began or went on: in the midst of a step, a write, the evaluation.
        if len(kills) < 2 and moments.random() < 0.7:
            time.sleep(moments.uniform(0, 0.3))
            os.kill(worker(executor, place), signal.SIGKILL)
            kills.append(what)

    report = Watching(happens)
    runs = planned(drawings, tmp_path)
    with local(drawings, report, retries=3) as executor:
        outcomes = finish(executor, runs)
        assert {outcome.status for outcome in outcomes} == {"finished"}
        assert len(kills) == 2
        lost = [line for line in report.said if "its worker was killed by SIGKILL" in line]
        assert 1 <= len(lost) <= 2, "a worker may be killed when its run is over already"
        warm = {one.pid for one in executor._workers()}
        assert 1 <= len(warm) <= 2

        # An executor may be asked again, and keeps its workers. A signal stops its runs with a checkpoint.
        (more,) = planned(drawings, tmp_path, seeds=1, algorithms=["sam"])

        def interrupt(place: int, what: str, step: int) -> None:
            if report.happened == 0:
                report.happened = 1
                os.kill(os.getpid(), signal.SIGINT)

        report.happening = interrupt
        with pytest.raises(Interrupted):
            finish(executor, [more])
        assert report.said[-1] == "stopping: 1 run writes its checkpoint"
        assert {one.pid for one in executor._workers()} < warm
        assert [path.parent for path in checkpoints(tmp_path)] == [more.directory]
    assert not any(map(psutil.pid_exists, warm))
    shutil.rmtree(more.directory)
    assert_trained_once(runs)
    assert left(tmp_path) == left(whole)


def test_a_run_that_loses_its_workers_is_recorded_and_the_others_go_on(
    drawings: Path, whole: Path, tmp_path: Path
) -> None:
    runs = planned(drawings, tmp_path)
    victim = "disam, line held out, seed 0"

    def happens(place: int, what: str, step: int) -> None:
        if what == victim:
            os.kill(worker(executor, place), signal.SIGKILL)

    report = Watching(happens)
    with local(drawings, report, jobs=1, retries=0) as executor:
        outcomes = finish(executor, runs)
        failed = [outcome for outcome in outcomes if outcome.status == "failed"]
        assert names([outcome.job for outcome in failed]) == [victim]
        assert [name for name, _ in report.begun].count(victim) == 1
        (job,) = (outcome.job for outcome in failed)
        record = json.loads((job.directory / "failure.json").read_text())
        assert record["type"] == "WorkerLostError"
        assert record["error"] == "its worker was killed by SIGKILL; the run lost its worker once and was given up"
        assert sum(outcome.status == "finished" for outcome in outcomes) == len(runs) - 1

        # What concerns every run is raised here as it would be without workers, and recorded for none.
        wrong = replace(job, config=replace(job.config, backbone="test_resnett"), directory=tmp_path / "wrong")
        with pytest.raises(SteppeError, match="unknown backbone 'test_resnett'; did you mean 'test_resnet"):
            finish(executor, [wrong])
        assert not (wrong.directory / "failure.json").exists()

    # Asked for again (--retry-failed), it is finished.
    assert [status(each.directory) for each in runs if each != job] == ["finished"] * (len(runs) - 1)
    assert status(job.directory) == "failed"
    with make_executor(Execution(), open_dataset(drawings), MACHINE, Watching(), "test") as second:
        assert [outcome.status for outcome in finish(second, [job])] == ["finished"]
    assert left(tmp_path) == left(whole)


def test_two_drivers_finish_what_a_killed_driver_left(drawings: Path, whole: Path, tmp_path: Path) -> None:
    root, output = tmp_path / "runs", tmp_path / "output"
    driver = bench(drawings, root, "--executor", "local", "--jobs", "2", output=output)
    while len(list(checkpoints(root))) < 2 and driver.poll() is None:
        time.sleep(0.02)
    time.sleep(random.Random(5).uniform(0, 0.1))
    assert driver.poll() is None, output.read_text()
    workers = family(driver.pid)
    assert len(workers) >= 2
    driver.kill()
    driver.wait()
    assert ended(workers, 20), "a process was left behind"
    unfinished = [path for path in root.rglob("config.json") if not (path.parent / "result.json").exists()]
    assert all((path.parent / "state.pt").exists() for path in unfinished)

    # One of the two is this process; it waits until the other is at work.
    text = output.read_text()
    second = bench(drawings, root, "--executor", "local", "--jobs", "1", output=output)
    runs = planned(drawings, root)
    while second.poll() is None and " held out" not in output.read_text()[len(text) :]:
        time.sleep(0.02)
    report = Watching()
    with make_executor(Execution(), open_dataset(drawings), MACHINE, report, "test") as executor:
        outcomes = finish(executor, runs)
    assert second.wait(60) == 0, output.read_text()
    assert {outcome.status for outcome in outcomes} == {"finished"}
    assert_trained_once(runs)
    assert left(root) == left(whole)
    there = output.read_text()[len(text) :]
    for name in names(runs):
        begun = [one for one, _ in report.begun].count(name) + there.count(f"{name}: from ")
        assert begun <= 1, "begun by both"


def test_what_this_machine_has_not_is_said_at_once(drawings: Path) -> None:
    here = cores()
    for options, message in (
        ({"cores_per_run": here + 1}, f"asks for {here + 1} cores, and this machine has {here}: lower --cores-per-run"),
        ({"memory_per_run": "900TB"}, r"asks for 900000\.0 GB, and this machine has .*: lower --memory-per-run"),
    ):
        execution = Execution(executor="local", **options)  # type: ignore[arg-type]
        with pytest.raises(SteppeError, match=message):
            make_executor(execution, open_dataset(drawings), MACHINE, Watching(), "test")
