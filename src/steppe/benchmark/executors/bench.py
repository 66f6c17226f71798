"""What a worker does: one run after the other, with the process, the imports and the data set kept in between."""

from __future__ import annotations

import gc
import os
import platform
import warnings
from dataclasses import replace
from typing import TextIO

import torch

from steppe import __version__
from steppe.benchmark.executor import execute
from steppe.benchmark.executors.events import Ended, Refused, Setup, Stopped
from steppe.benchmark.protocol import Job
from steppe.data import DomainDataset, open_dataset
from steppe.errors import SteppeError
from steppe.training.interruption import Interrupted
from steppe.training.machine import Machine
from steppe.training.progress import Report

GPU_LOADERS = 8
"""Loading processes beside a GPU where nothing else is said, as :meth:`Machine.loader_workers` has it."""


class WorkBench:
    """The place of one worker.

    Args:
        setup: what the driver said.
        report: where Python's warnings go from now on, as lines: nobody reads the standard error of a worker.

    Raises:
        SteppeError: the data set is not here or is another one than the driver's, or the worker's steppe is.
    """

    def __init__(self, setup: Setup, report: Report) -> None:
        here = platform.node()
        if setup.version != __version__:
            raise SteppeError(
                f"steppe is {__version__} on {here} and {setup.version} where the sweep was started: "
                "install the same version everywhere"
            )
        self._setup = setup
        self._datasets: dict[str, DomainDataset] = {}
        self._machine = _within(setup.machine, setup.cores)
        threads = self._machine.threads
        if threads is not None:
            torch.set_num_threads(threads)
        _show_warnings(report)
        found = self._dataset(setup.spec).fingerprint()
        if found != setup.fingerprint:
            raise SteppeError(
                f"the data set {setup.spec} on {here} is not the one that the sweep was started with "
                f"(fingerprint {found} instead of {setup.fingerprint}): copy it anew"
            )

    def work(self, job: Job, report: Report) -> Ended | Stopped | Refused:
        """Do one run, whichever way it ends."""
        try:
            outcome = execute(job, self._dataset(job.config.dataset), self._machine, report, self._setup.command)
        except Interrupted:
            return Stopped()
        except SteppeError as error:
            return Refused.because(error)
        on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if on_gpu:
            gc.collect()
            torch.cuda.empty_cache()  # another worker may share the GPU
        # After an error on a GPU every later call there may fail, whoever makes it.
        return Ended(outcome.status, outcome.error, spoilt=on_gpu and outcome.status == "failed")

    def _dataset(self, spec: str) -> DomainDataset:
        if spec not in self._datasets:
            # The driver has looked at every picture already.
            self._datasets = {spec: open_dataset(spec, verify=False)}
        return self._datasets[spec]


def _within(machine: Machine, cores: int | None) -> Machine:
    if machine.workers is None and cores is not None and machine.device != "cpu" and torch.cuda.is_available():
        return replace(machine, workers=min(GPU_LOADERS, cores, os.cpu_count() or 1))
    return machine


def _show_warnings(report: Report) -> None:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        report.say(f"{filename}:{lineno}: {category.__name__}: {message}")

    warnings.showwarning = show
