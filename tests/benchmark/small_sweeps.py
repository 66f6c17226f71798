"""Sweeps that take seconds, and what is left of one when it is over: files and table, times aside."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from small_runs import outputs

from steppe.benchmark.executor import Executor, InProcess, Outcome
from steppe.benchmark.protocol import Job, jobs, leave_one_domain_out
from steppe.benchmark.store import Store
from steppe.data import open_dataset
from steppe.report import load_runs, print_table, summarise
from steppe.report.runs import Runs
from steppe.training import Machine, Settings
from steppe.training.config import run_name
from steppe.training.progress import Silent

STEPS = 24
MACHINE = Machine(device="cpu", threads=1, checkpoint_every=2)
SETTINGS = Settings(
    backbone="test_resnet",
    pretrained=False,
    frozen_batch_norm=False,
    image_size=32,
    batch_per_domain=3,
    steps=STEPS,
    eval_every=12,
    optimizer="adamw",
    lr=1e-3,
)
OPTIONS = [
    *("--backbone", "test_resnet", "--no-pretrained", "--no-frozen-batch-norm", "--image-size", "32"),
    *("--batch-per-domain", "3", "--steps", str(STEPS), "--eval-every", "12", "--optimizer", "adamw", "--lr", "1e-3"),
    *("--device", "cpu", "--threads", "1", "--checkpoint-every", "2"),
]
"""The same for the command line."""
ALGORITHMS = ("erm", "disam")


def planned(
    dataset: Path | str, root: Path, *, seeds: int = 2, algorithms: Sequence[str] = ALGORITHMS, **changes: Any
) -> list[Job]:
    """The runs of a sweep in the store ``root``: one held-out domain, two algorithms, two seeds."""
    opened = open_dataset(dataset)
    settings = replace(SETTINGS, **changes)
    configs = leave_one_domain_out(opened, algorithms=algorithms, held_out=["line"], seeds=seeds, settings=settings)
    return jobs(Store(root), opened, configs)


def undisturbed(dataset: Path | str, root: Path, **plan: Any) -> list[Job]:
    """The same sweep, done in this process."""
    runs = planned(dataset, root, **plan)
    outcomes = list(InProcess(open_dataset(dataset), MACHINE, Silent(), "test").run(runs))
    assert [outcome.status for outcome in outcomes] == ["finished"] * len(runs)
    return runs


def left(root: Path) -> dict[str, Any]:
    """Every file of every run in a store, and its table, times aside."""
    folders = sorted(path.parent for path in root.rglob("result.json"))
    console = Console(file=io.StringIO(), width=200)
    found = load_runs(root)
    timeless = (replace(run, result={**run.result, "seconds_per_step": 1.0}) for run in found)
    print_table(summarise(Runs(timeless, unfinished=found.unfinished, failures=found.failures)), console)
    assert isinstance(console.file, io.StringIO)
    return {
        "runs": {str(folder.relative_to(root)): outputs(folder) for folder in folders},
        "table": console.file.getvalue(),
    }


def assert_trained_once(runs: Sequence[Job]) -> None:
    """Every step of every run that is logged is in its metrics exactly once, in order."""
    for job in runs:
        every = job.config.log_every
        lines = [json.loads(line) for line in (job.directory / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(every, STEPS + 1, every))


class Watching(Silent):
    """Notes which runs began at which step, and lets a test do something whenever a worker tells of one."""

    def __init__(self, happens: Callable[[int, str, int], None] | None = None) -> None:
        self.begun: list[tuple[str, int]] = []
        self.said: list[str] = []
        self.happened = 0
        self.happening = happens or (lambda place, what, step: None)

    def lane(self, place: int) -> _WatchedLane:
        return _WatchedLane(self, place)

    def say(self, message: str) -> None:
        self.said.append(message)

    def happens(self, place: int, what: str, step: int) -> None:
        self.happening(place, what, step)


class _WatchedLane(Silent):
    def __init__(self, whole: Watching, place: int) -> None:
        self._whole, self._place = whole, place

    def begin(self, name: str, *, step: int, total: int) -> None:
        self._whole.begun.append((name, step))
        self._whole.happens(self._place, name, step)

    def advance(self, step: int, loss: float) -> None:
        self._whole.happens(self._place, "", step)

    def say(self, message: str) -> None:
        self._whole.say(message)


def names(runs: Sequence[Job]) -> list[str]:
    """What the runs are called on the screen, sorted."""
    return sorted(run_name(job.config) for job in runs)


def finish(executor: Executor, runs: Sequence[Job]) -> list[Outcome]:
    """The outcomes, each run's exactly once."""
    outcomes = list(executor.run(runs))
    assert sorted(outcome.job.directory for outcome in outcomes) == sorted(job.directory for job in runs)
    return outcomes


def bench(dataset: Path | str, root: Path, *more: str, output: Path) -> subprocess.Popen[bytes]:
    """``steppe bench`` of the same sweep in a real process that leads a process group of its own."""
    command = [sys.executable, "-c", "from steppe.cli import main; main()", "bench", str(dataset)]
    command += ["--algorithms", *ALGORITHMS, "--held-out", "line", "--seeds", "2", "--out", str(root), *OPTIONS, *more]
    with output.open("ab") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, process_group=0, env=environment)


def family(pid: int) -> list[psutil.Process]:
    """The processes that one has started, and they in turn."""
    return psutil.Process(pid).children(recursive=True)


def ended(processes: Sequence[psutil.Process], seconds: float) -> bool:
    """Whether all of them are over within so many seconds; zombies count as over."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def checkpoints(root: Path) -> Iterator[Path]:
    """The checkpoints in a store."""
    yield from root.rglob("state.pt")
