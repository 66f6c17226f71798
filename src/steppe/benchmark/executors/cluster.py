"""Runs on a Ray cluster."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from steppe.benchmark.executor import Outcome
from steppe.benchmark.executors.budget import spoken
from steppe.benchmark.executors.connection import connect
from steppe.benchmark.executors.crew import RETRIES, Crew
from steppe.benchmark.executors.events import Ended, Event, Setup
from steppe.benchmark.executors.exchange import METRICS, Exchange, exchange_name
from steppe.benchmark.executors.remote import RemoteWorker
from steppe.benchmark.protocol import Job
from steppe.benchmark.shared_disk import Probe
from steppe.benchmark.store import FAILURE, forget_failure
from steppe.data import DomainDataset
from steppe.errors import SteppeError
from steppe.training.files import STATE, run_lock
from steppe.training.machine import Machine
from steppe.training.progress import Report
from steppe.training.results import RESULT, DamagedResultError, read_result, set_aside

NODES_SECONDS = 2.0
"""How often the nodes of the cluster are counted."""

ENVIRONMENT = ("STEPPE_CACHE",)
"""Variables that decide where workers look for data sets."""


class RayExecutor(Crew[RemoteWorker]):
    """Workers that are Ray actors, as many as there are runs, ``jobs`` allows and the nodes have room for.

    An actor keeps its process, imports and data set between runs. It asks Ray for the cores, GPUs and memory of one run
    for as long as it lives. Nodes may come and go: a run whose node is lost goes on elsewhere from its last checkpoint.

    Where the store of runs is, every node has to see it at the same path (it is checked, with its locks); or runs
    travel through ``exchange``.

    Args:
        dataset, machine, report, command, retries: see :class:`~steppe.benchmark.executors.crew.Crew`. Workers open the
            data set by its name or absolute path.
        address: ``"host:port"`` of a running cluster that this machine is a node of, ``"auto"`` for the one that was
            started here; ``None``: the one in ``RAY_ADDRESS``, or else a Ray of its own on this machine.
        jobs: most runs at a time; ``None``: as many as fit.
        cores_per_run: cores that Ray keeps for a run, which are its threads unless ``machine.threads`` says otherwise;
            ``None``: as many as its threads, or one.
        gpus_per_run: GPUs of a run, at most 1; ``None``: one where the cluster has any and ``machine`` allows it.
        memory_per_run: bytes that Ray reckons with; ``None``: none.
        exchange: the address of an object store, see :mod:`~steppe.benchmark.executors.exchange`.

    Raises:
        SteppeError: Ray is not installed, no cluster answers, or no node has what a run asks for.
    """

    def __init__(
        self,
        dataset: DomainDataset,
        machine: Machine,
        report: Report,
        command: str,
        *,
        address: str | None = None,
        jobs: int | None = None,
        cores_per_run: int | None = None,
        gpus_per_run: float | None = None,
        memory_per_run: int | None = None,
        retries: int = RETRIES,
        exchange: str | None = None,
    ) -> None:
        super().__init__(dataset, machine, report, command, retries=retries)
        self._exchange = None if exchange is None else Exchange(exchange)
        if self._exchange is not None:
            self._exchange.check()
        self._ray, self._started = connect(address)
        self.jobs = jobs
        self.cores_per_run = cores_per_run or machine.threads or 1
        self.threads = machine.threads or self.cores_per_run
        self.memory_per_run = memory_per_run
        self._counted = (0.0, 0)
        self._waiting = False
        self._probe: Probe | None = None
        self._locks: dict[Path, ExitStack] = {}
        nodes = self._nodes()
        there = any(node.get("GPU", 0) >= 1 for node in nodes)
        if machine.device == "cpu" or (machine.device == "auto" and not there):
            gpus_per_run = 0.0
        self.gpus_per_run = 1.0 if gpus_per_run is None else gpus_per_run
        try:
            self._check_room(nodes)
        except SteppeError:
            self.close()
            raise

    def close(self) -> None:
        """End every actor, those at work after a checkpoint; and Ray, where it was started for this."""
        try:
            super().close()
        finally:
            for lock in self._locks.values():
                lock.close()
            self._locks.clear()
            if self._probe is not None:
                self._probe.remove()
                self._probe = None
            if self._started:
                self._started = False
                self._ray.shutdown()

    # --- workers ---

    def _setup(self) -> Setup:
        machine = replace(self.machine, threads=self.threads)
        return replace(super()._setup(), machine=machine, cores=self.cores_per_run)

    def _hire(self, place: int, setup: Setup) -> RemoteWorker | None:
        most = self._places()
        if not most and not self._workers() and not self._waiting:
            self._waiting = True
            self.report.say("no node of the Ray cluster has room for a run; waiting for one")
        if len(self._workers()) >= (most if self.jobs is None else min(self.jobs, most)):
            return None
        from steppe.benchmark.executors.actor import Actor

        address = None if self._exchange is None else self._exchange.address
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        actor = (
            self._ray.remote(Actor)
            .options(
                num_cpus=self.cores_per_run,
                num_gpus=self.gpus_per_run,
                memory=self.memory_per_run,
                max_restarts=0,
                max_concurrency=3,  # a run, a look at it, and an order to stop
                scheduling_strategy="SPREAD",
            )
            .remote(setup, address, environment, str(Path.cwd()))
        )
        return RemoteWorker(place, self._ray, actor, self._sent)

    def _events(self, seconds: float) -> list[tuple[RemoteWorker, Event]]:
        for worker in self._workers():
            worker.look()
        pending = {ref: worker for worker in self._workers() for ref in worker.pending()}
        if not pending:
            time.sleep(seconds)
            return []
        refs = list(pending)
        self._ray.wait(refs, num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return [(pending[ref], event) for ref in ready for event in pending[ref].hear(ref)]

    def _places(self) -> int:
        """How many runs the nodes have room for if nobody else is there."""
        when, count = self._counted
        if time.monotonic() - when > NODES_SECONDS:
            count = sum(map(self._room, self._nodes()))
            self._counted = (time.monotonic(), count)
        return count

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _asked(self) -> dict[str, float]:
        asked = {"CPU": self.cores_per_run, "GPU": self.gpus_per_run, "memory": self.memory_per_run or 0}
        return {name: amount for name, amount in asked.items() if amount}

    def _room(self, node: dict[str, float]) -> int:
        return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in self._asked().items())

    def _check_room(self, nodes: list[dict[str, float]]) -> None:
        for name, amount in self._asked().items():
            most = max((node.get(name, 0.0) for node in nodes), default=0.0)
            if amount > most:
                said = spoken(amount) + " of memory" if name == "memory" else f"{amount:g} {_RESOURCES[name]}"
                has = spoken(most) if name == "memory" else f"{most:g}"
                option = {"CPU": "cores", "GPU": "gpus", "memory": "memory"}[name]
                raise SteppeError(
                    f"a run asks for {said}, and no node of the Ray cluster has more than {has}: "
                    f"lower --{option}-per-run, or add a node that has it"
                )
        if not any(map(self._room, nodes)):
            raise SteppeError("no node of the Ray cluster has all that a run asks for: lower --cores-per-run")

    # --- the store ---

    def _sent(self, job: Job) -> tuple[Job, str]:
        """What an actor is told of a run: see :meth:`~steppe.benchmark.executors.actor.Actor.work`."""
        directory = job.directory.absolute()
        if self._exchange is not None:
            # Without a search's rule for stopping it, which looks into a file of the driver's.
            return Job(job.config, directory), exchange_name(directory)
        assert self._probe is not None
        return replace(job, directory=directory), str(self._probe.path)

    def _take(self, job: Job) -> Outcome | None:
        if self._exchange is None:
            if self._probe is None:
                self._probe = Probe(job.directory.parent)
            return None
        with ExitStack() as stack:
            stack.enter_context(run_lock(job.directory))
            try:
                if read_result(job.directory) is not None:
                    return self._outcome(job, Ended("finished"))
            except DamagedResultError as error:
                what = str(error).partition(";")[0]
                kept = set_aside(job.directory).name
                # With it the checkpoint had gone: full-length metrics alone would outrank every new archive.
                if not (job.directory / STATE).exists():
                    (job.directory / METRICS).unlink(missing_ok=True)
                self.report.say(f"warning: {what}; it is kept as {kept}, and the run is trained again")
            except SteppeError as error:
                return Outcome(job, "failed", error=str(error))
            forget_failure(job.directory)
            self._exchange.push(exchange_name(job.directory), job.directory, unless_known=True)
            self._locks[job.directory] = stack.pop_all()
        return None

    def _give_back(self, job: Job) -> None:
        if self._exchange is not None:
            self._exchange.pull(exchange_name(job.directory), job.directory)
            if any((job.directory / name).exists() for name in (RESULT, FAILURE)):
                self._exchange.clear(exchange_name(job.directory))

    def _release(self, job: Job) -> None:
        lock = self._locks.pop(job.directory, None)
        if lock is not None:
            lock.close()


_RESOURCES = {"CPU": "cores", "GPU": "GPUs"}
