"""The two programs of whole_train.py: their command lines for one and the same task, and what their records say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from process_tree import Finished, run

from steppe.data import CacheOptions, decoded_pictures, open_dataset
from steppe.data.decoded_places import cache_places

NETWORKS = {"resnet18": "resnet18-f37072fd.pth", "resnet50": "resnet50-0676ba61.pth"}
"""Network -> the name under which torchvision looks for its weights in its hub's folder."""
LR = 5e-5
CACHES = ("off", "building", "warm")
SETTING_WORKERS = (
    "import runpy, sys; from domainbed import datasets; "
    "datasets.PACS.N_WORKERS = {workers}; runpy.run_module('domainbed.scripts.train', run_name='__main__')"
)


@dataclass(frozen=True)
class Task:
    """What both are to do.

    Attributes:
        work: folder of everything that is written; the pictures are in ``data/PACS``.
        network: one of ``NETWORKS``.
        batch: pictures of each source domain in a step.
        sources: how many domains are trained on.
        held_out: the domain that is not: the first of the folder.
        every: steps between evaluations.
        evaluations: their number; at least 3.
        device: ``"cpu"`` or ``"cuda"``.
    """

    work: Path
    network: str
    batch: int
    sources: int
    held_out: str
    every: int
    evaluations: int
    device: str

    @property
    def steps(self) -> int:
        """With one more than a multiple both programs evaluate equally often."""
        return self.every * (self.evaluations - 1) + 1

    @property
    def pictures(self) -> Path:
        return self.work / "data" / "PACS"

    @property
    def known(self) -> Path:
        """Where steppe remembers which pictures it has looked at."""
        return self.work / "known"


class Side(Protocol):
    """A program that can do the task.

    Attributes:
        name: as the records have it.
    """

    name: str

    def run(self, task: Task) -> dict[str, Any]:
        """Do it once; what it took."""


@dataclass(frozen=True)
class DomainBed:
    """``python -m domainbed.scripts.train``.

    Args:
        checkout: of facebookresearch/DomainBed.
        python: the interpreter that can run it.
        workers: loading processes of each of its loaders; None leaves the program as it is (8). Another number is set
            before the unchanged program begins: it has no option for that.
    """

    checkout: Path
    python: Path
    workers: int | None = None

    @property
    def name(self) -> str:
        return "DomainBed" if self.workers is None else f"DomainBed, {self.workers} workers a loader"

    def run(self, task: Task) -> dict[str, Any]:
        out = fresh(task.work / "domainbed")
        hparams = {
            "resnet18": task.network == "resnet18",
            "resnet50_augmix": False,
            "freeze_bn": True,
            "batch_size": task.batch,
            "lr": LR,
        }
        program = ["-m", "domainbed.scripts.train"]
        if self.workers is not None:
            program = ["-c", SETTING_WORKERS.format(workers=self.workers)]
        options = {
            "data_dir": task.work / "data",
            "dataset": "PACS",
            "algorithm": "ERM",
            "test_envs": 0,
            "steps": task.steps,
            "checkpoint_freq": task.every,
            "output_dir": out,
            "hparams": json.dumps(hparams),
        }
        command = [self.python, *program, *(word for name, value in options.items() for word in (f"--{name}", value))]
        environment = {"PYTHONPATH": str(self.checkout), "TORCH_HOME": str(task.work / "torch")}
        if task.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        log = out / "results.jsonl"
        finished = run(
            list(map(str, command)),
            environment=environment,
            directory=self.checkout,
            watched=lambda: len(lines(log)),
        )
        records = [(row["step"] + 1, row["step_time"]) for row in lines(log)]
        expected = [number * task.every + 1 for number in range(task.evaluations)]
        check(self.name, [step for step, _ in records], expected)
        return taken(task, finished, records, cycles=finished.marks[1:])


@dataclass(frozen=True)
class Steppe:
    """``steppe train``.

    Args:
        cache: of decoded pictures: ``"off"``; ``"building"``, as the first run on a folder, which has to look whether
            every picture can be read and to decode it; ``"warm"``, as any later one.
        options: of the command line, besides.
    """

    cache: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"steppe, cache {self.cache}"

    def run(self, task: Task) -> dict[str, Any]:
        out = fresh(task.work / "runs")
        if self.cache == "building":
            fresh(task.known)
            fresh(cache_places(task.pictures)[0])
        options = {
            "held-out": task.held_out,
            "algorithm": "erm",
            "split": "domainbed",
            "backbone": f"{task.network}.tv_in1k",
            "lr": LR,
            "batch-per-domain": task.batch,
            "steps": task.steps,
            "eval-every": task.every,
            "device": task.device,
            "cache": "off" if self.cache == "off" else "on",
            "out": out,
        }
        command = [
            *(sys.executable, "-c", "from steppe.cli import main; main()", "train", task.pictures, "--no-pretrained"),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
            *self.options,
        ]

        def metrics(kind: str) -> list[dict[str, Any]]:
            return [row for log in out.rglob("metrics.jsonl") for row in lines(log) if row["kind"] == kind]

        finished = run(
            list(map(str, command)), environment={"STEPPE_CACHE": str(task.known)}, watched=lambda: len(metrics("eval"))
        )
        expected = [number * task.every for number in range(1, task.evaluations)]
        check(self.name, [row["step"] for row in metrics("eval")], [*expected, task.steps])
        records = [(row["step"], row["seconds"]) for row in metrics("train")]
        return taken(task, finished, records, cycles=finished.marks[:-1])


def know(task: Task) -> None:
    """Leave the folder as a run leaves it: every picture looked at, and in the cache."""
    os.environ["STEPPE_CACHE"] = str(task.known)
    decoded_pictures(open_dataset(str(task.pictures)), CacheOptions("on"))


def taken(
    task: Task, finished: Finished, records: list[tuple[int, float]], cycles: tuple[float, ...]
) -> dict[str, Any]:
    """What a run took, as a line of the file has it.

    Args:
        records: the step at which each stretch ended and its mean seconds a step, waiting for pictures included.
        cycles: times that are ``task.every`` steps and an evaluation apart.
    """
    ends = [0, *(step for step, _ in records)]
    spent = sum(mean * (end - begin) for (_, mean), begin, end in zip(records, ends[:-1], ends[1:], strict=True))
    return {
        "seconds": finished.seconds,
        "cycle": (cycles[-1] - cycles[0]) / (len(cycles) - 1),
        "training": spent,
        "pictures_per_second": ends[-1] * task.batch * task.sources / spent,
        "own_gb": finished.own / 1e9,
        "files_gb": finished.files / 1e9,
        "machine_gb": finished.machine / 1e9,
        "processes": finished.processes,
    }


def lines(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may not be there yet."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def check(name: str, found: list[int], expected: list[int]) -> None:
    """SystemExit unless a run evaluated at these steps."""
    if found != expected:
        raise SystemExit(f"{name} evaluated after the steps {found}, not {expected}")


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def versions(python: Path, checkout: Path) -> str:
    """What DomainBed runs on, in a line."""
    names = ["torch", "torchvision", "timm", "pillow", "numpy"]
    program = (
        "import sys, platform; from importlib.metadata import version; "
        "print(', '.join(['Python ' + platform.python_version(), *(f'{n} {version(n)}' for n in sys.argv[1:])]))"
    )
    try:
        packages = subprocess.run([python, "-c", program, *names], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{python} cannot run DomainBed: {getattr(error, 'stderr', '') or error}") from error
    call = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(call, capture_output=True, text=True).stdout.strip() or "unknown"
    return f"DomainBed {commit}, {packages.strip()}"
