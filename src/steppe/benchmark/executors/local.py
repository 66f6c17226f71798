"""Runs in several processes of this machine."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from multiprocessing.connection import wait

from steppe.benchmark.executors.budget import (
    MemoryBudget,
    available_memory,
    cores,
    held_memory,
    spoken,
    total_memory,
)
from steppe.benchmark.executors.crew import RETRIES, Crew
from steppe.benchmark.executors.events import Event, Lost, Setup
from steppe.benchmark.executors.process import WorkerProcess
from steppe.data import DomainDataset
from steppe.errors import SteppeError
from steppe.training.machine import Machine
from steppe.training.progress import Report

SAMPLE_SECONDS = 1.0
"""How often it is looked how much memory the workers hold."""

IDLE_BYTES = 10**9
"""What a worker takes that does nothing yet, with room to spare: its imports and a small data set."""


class LocalProcesses(Crew[WorkerProcess]):
    """Workers that are processes of this machine, each with its share of the cores and, where there are any, of a GPU.

    A run begins where there is memory for it: as much as ``memory_per_run`` says, or a quarter more than the largest
    run so far was seen to hold; for that, the second begins when the first has made a few steps.

    The numbers are those of :class:`~steppe.benchmark.executor.InProcess` with the same number of threads, to the bit.

    Args:
        dataset, machine, report, command, retries: see :class:`~steppe.benchmark.executors.crew.Crew`.
        jobs: workers; ``None``: one for each GPU (or part of one, see below), otherwise as many as the cores allow.
        cores_per_run: cores of a run, which are its threads unless ``machine.threads`` says otherwise; ``None``: the
            machine's cores divided by ``jobs``, or one where that is not given either.
        gpus_per_run: the part of a GPU that a run takes: with 0.5 two share one; ``None``: a whole one.
        memory_per_run: bytes; ``None``: measured.

    Raises:
        SteppeError: more is asked for than this machine has.
    """

    def __init__(
        self,
        dataset: DomainDataset,
        machine: Machine,
        report: Report,
        command: str,
        *,
        jobs: int | None = None,
        cores_per_run: int | None = None,
        gpus_per_run: float | None = None,
        memory_per_run: int | None = None,
        retries: int = RETRIES,
    ) -> None:
        super().__init__(dataset, machine, report, command, retries=retries)
        here = cores()
        if cores_per_run is not None and cores_per_run > here:
            raise SteppeError(
                f"a run asks for {cores_per_run} cores, and this machine has {here}: lower --cores-per-run"
            )
        if memory_per_run is not None and memory_per_run > total_memory():
            raise SteppeError(
                f"a run asks for {spoken(memory_per_run)}, and this machine has {spoken(total_memory())} of memory: "
                "lower --memory-per-run"
            )
        self._gpus = _gpus(machine, gpus_per_run)
        if jobs is None:
            jobs = len(self._gpus) or max(1, here // (cores_per_run or machine.threads or 1))
        elif self._gpus:
            jobs = min(jobs, len(self._gpus))
        self.jobs = jobs
        self.cores_per_run = cores_per_run or max(1, here // jobs)
        self.threads = machine.threads or self.cores_per_run
        self._memory = MemoryBudget(memory_per_run)
        self._held: dict[int, int] = {}
        self._sampled = 0.0
        self._crowded = False

    def _setup(self) -> Setup:
        machine = replace(self.machine, threads=self.threads)
        return replace(super()._setup(), machine=machine, cores=self.cores_per_run)

    def _hire(self, place: int, setup: Setup) -> WorkerProcess | None:
        if len(self._workers()) >= self.jobs:
            return None
        if self._memory.need is None:
            # What a run needs is not known yet: the worker may come up meanwhile, and its run waits.
            if available_memory() < IDLE_BYTES * (len(self._starting) + 1):
                return None
        elif not self._room(None):
            return None
        gpu = self._gpus[place] if self._gpus else None
        try:
            return WorkerProcess(place, setup, threads=self.threads, gpu=gpu)
        except OSError as error:
            raise SteppeError(f"cannot start a worker process ({error}): lower --jobs") from error

    def _may_begin(self, worker: WorkerProcess) -> bool:
        # Where memory ran out there may be more workers than runs that may be at work.
        return len(self._working) < self.jobs and self._room(worker)

    def _room(self, worker: WorkerProcess | None) -> bool:
        """Whether memory lets one more run begin, on this worker or on a new one."""
        busy = [*self._working, *self._starting]
        held = 0 if worker is None else self._held.get(worker.pid, 0)
        if self._memory.room(held, [self._held.get(other.pid, 0) for other in busy]):
            return True
        if self._memory.need is not None and not self._crowded:
            self._crowded = True
            self.report.say(
                f"memory has room for {len(busy)} of {self.jobs} runs at a time for now: one is reckoned to need "
                f"{spoken(self._memory.need)}, and {spoken(available_memory())} are free"
            )
        return False

    def _events(self, seconds: float) -> list[tuple[WorkerProcess, Event]]:
        workers = self._workers()
        if not workers:
            time.sleep(seconds)
        wait([worker.connection for worker in workers], timeout=seconds)
        events = [(worker, event) for worker in workers for event in worker.hear()]
        for _, event in events:
            if isinstance(event, Lost) and event.out_of_memory:
                self.jobs = max(1, self.jobs - 1)
                self.report.say(f"memory ran out: from now on at most {self.jobs} at a time")
        self._sample()
        return events

    def _sample(self) -> None:
        workers = self._workers()
        first = self._memory.need is None and any(worker.measured for worker in workers)
        if time.monotonic() - self._sampled < SAMPLE_SECONDS and not first:
            return
        self._sampled = time.monotonic()
        self._held = {worker.pid: held_memory(worker.pid) for worker in workers}
        for worker in workers:
            if worker.measured:
                self._memory.saw(self._held[worker.pid])


def _gpus(machine: Machine, share: float | None) -> list[str]:
    """``CUDA_VISIBLE_DEVICES`` for each place, the GPUs taking turns; empty where runs use none."""
    import torch

    if machine.device == "cpu" or not torch.cuda.is_available():
        return []
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in listed.split(",") if name.strip()]
    names = names or [str(number) for number in range(torch.cuda.device_count())]
    return names * int(1 / (share or 1.0) + 1e-9)
