from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import write_run
from small_runs import forkserver, outputs, small_config

from steppe.benchmark import executor
from steppe.benchmark.executor import InProcess, Outcome
from steppe.benchmark.protocol import Job, jobs, leave_one_domain_out
from steppe.benchmark.store import Store, record_failure, status
from steppe.data import open_dataset
from steppe.errors import SteppeError
from steppe.training import Machine, OutputError, RunConfig, Settings, Trainer
from steppe.training.files import run_lock
from steppe.training.progress import Silent
from steppe.training.results import read_result
from steppe.training.session import Session


def sweep(drawings: Path, root: Path, **settings: Any) -> list[Job]:
    dataset = open_dataset(drawings)
    names = ("backbone", "pretrained", "frozen_batch_norm", "image_size", "batch_per_domain", "steps", "eval_every")
    fields = {name: getattr(small_config(drawings), name) for name in (*names, "optimizer", "lr")}
    configs = leave_one_domain_out(
        dataset, algorithms=["erm", "sam"], held_out=["line"], seeds=2, settings=Settings(**{**fields, **settings})
    )
    return jobs(Store(root), dataset, configs)


def run(drawings: Path, planned: list[Job]) -> list[Outcome]:
    return list(InProcess(open_dataset(drawings), Machine(), Silent(), "test").run(planned))


def test_a_failed_run_is_recorded_and_the_sweep_goes_on(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = sweep(drawings, tmp_path)
    make_step = Session.make_step

    def broken(self: Session, batch: Any) -> None:
        if self.step == 5 and self.method.name == "erm":
            raise MemoryError("out of memory")
        make_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "make_step", broken)
        outcomes = run(drawings, planned)
    assert [(o.job.config.algorithm, o.status) for o in outcomes] == [
        ("erm", "failed"),
        ("sam", "finished"),
        ("erm", "failed"),
        ("sam", "finished"),
    ]
    failed = outcomes[0]
    assert failed.error == "MemoryError: out of memory"
    record = json.loads((failed.job.directory / "failure.json").read_text())
    assert record["error"] == "out of memory"
    assert record["type"] == "MemoryError"
    assert "in broken" in record["traceback"]
    assert record["command"] == "test"
    assert [status(job.directory) for job in planned] == ["failed", "finished", "failed", "finished"]

    # The same command tries again what failed, from its last checkpoint, and only that.
    stamp = (planned[1].directory / "result.json").stat().st_mtime_ns
    assert [outcome.status for outcome in run(drawings, planned)] == ["finished"] * 4
    assert (planned[1].directory / "result.json").stat().st_mtime_ns == stamp
    assert not (failed.job.directory / "failure.json").exists()
    Trainer(failed.job.config, out=tmp_path / "alone", command="test").fit()
    assert outputs(failed.job.directory) == outputs(tmp_path / "alone")


def test_a_loss_that_is_not_finite_is_the_run_s_own(drawings: Path, tmp_path: Path) -> None:
    planned = sweep(drawings, tmp_path, optimizer="sgd", lr=1e30, frozen_batch_norm=True)
    outcomes = run(drawings, planned)
    assert [outcome.status for outcome in outcomes] == ["failed"] * 4
    assert all("not finite" in outcome.error for outcome in outcomes)
    assert all((job.directory / "failure.json").exists() for job in planned)


def test_what_concerns_every_run_stops_the_sweep(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match="unknown backbone 'test_resnett'; did you mean 'test_resnet"):
        run(drawings, sweep(drawings, tmp_path, backbone="test_resnett"))
    assert not list(tmp_path.rglob("failure.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        run(drawings, sweep(drawings, tmp_path / "file"))


def work(config: RunConfig, directory: Path, root: str, answer: Any) -> None:
    planned = [Job(config, directory)]
    outcomes = list(InProcess(open_dataset(root), Machine(), Silent(), "other").run(planned))
    answer.send([outcome.status for outcome in outcomes])


def test_two_sweeps_share_the_work(drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = sweep(drawings, tmp_path)
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.05)
    polls = 0

    class Waiting(Silent):
        def say(self, message: str) -> None:
            nonlocal polls
            assert "waiting for another process" in message
            polls += 1
            lock.__exit__(None, None, None)  # the other process is done, without a result

    lock = run_lock(planned[0].directory)
    lock.__enter__()
    assert status(planned[0].directory) == "running"
    outcomes = list(InProcess(open_dataset(drawings), Machine(), Waiting(), "test").run(planned))
    assert polls == 1
    # What was held came last, and was trained after all.
    assert [outcome.job for outcome in outcomes] == [*planned[1:], planned[0]]
    assert {outcome.status for outcome in outcomes} == {"finished"}


def test_what_another_process_saw_fail_is_not_tried_again(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, *_) = sweep(drawings, tmp_path)
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.05)

    class Waiting(Silent):
        def say(self, message: str) -> None:
            record_failure(job.directory, ValueError("the other's reason"), "the other")
            lock.__exit__(None, None, None)

    lock = run_lock(job.directory)
    lock.__enter__()
    (outcome,) = InProcess(open_dataset(drawings), Machine(), Waiting(), "test").run([job])
    assert (outcome.status, outcome.error) == ("failed", "the other's reason")
    assert json.loads((job.directory / "failure.json").read_text())["command"] == "the other"
    assert not (job.directory / "metrics.jsonl").exists()


def test_waiting_is_said_only_where_it_is_done(drawings: Path, tmp_path: Path) -> None:
    planned = sweep(drawings, tmp_path)
    said: list[str] = []

    class Listening(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    with run_lock(planned[0].directory):
        outcomes = InProcess(open_dataset(drawings), Machine(), Listening(), "test").run(planned)
        others = [next(outcomes) for _ in planned[1:]]
    # The other process ends before this one would have to wait.
    assert [outcome.job for outcome in [*others, *outcomes]] == [*planned[1:], planned[0]]
    assert said == []


@pytest.mark.slow
def test_two_processes_at_once_train_every_run_once(drawings: Path, tmp_path: Path) -> None:
    (job, *_) = sweep(drawings, tmp_path)
    here, there = forkserver.Pipe(duplex=False)
    arguments = (job.config, job.directory, str(drawings), there)
    children = [forkserver.Process(target=work, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    answers = [here.recv() for _ in children]
    for child in children:
        child.join()
    assert answers == [["finished"], ["finished"]]
    lines = (job.directory / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if json.loads(line)["kind"] == "train"]
    assert steps == list(range(1, 13))


def test_status_follows_the_files(tmp_path: Path) -> None:
    run_directory = tmp_path / "run"
    assert status(run_directory) == "new"
    record_failure(run_directory, ValueError("wrong"), "test")
    assert status(run_directory) == "failed"
    with run_lock(run_directory):
        assert status(run_directory) == "running"
    (run_directory / "failure.json").unlink()
    (run_directory / "config.json").write_text("{}")
    assert status(run_directory) == "partial"
    for content in ("{}", "[]", "{bad", "null", '{"version": 2}'):
        (run_directory / "result.json").write_text(content)
        assert status(run_directory) == "damaged"
        with pytest.raises(SteppeError, match=r"result\.json.*delete it to train the run again"):
            read_result(run_directory)
    write_run(tmp_path / "store")
    (finished,) = (tmp_path / "store").rglob("result.json")
    assert status(finished.parent) == "finished"
