"""Runs on a Ray cluster."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from steppe.benchmark.executor import Outcome
from steppe.benchmark.executors.budget import cores, spoken
from steppe.benchmark.executors.crew import RETRIES, Crew
from steppe.benchmark.executors.events import Ended, Event, Lost, Setup
from steppe.benchmark.executors.exchange import Exchange, exchange_name
from steppe.benchmark.protocol import Job
from steppe.benchmark.shared_disk import Probe
from steppe.benchmark.store import FAILURE, forget_failure
from steppe.data import DomainDataset
from steppe.errors import SteppeError
from steppe.training.files import run_lock
from steppe.training.machine import Machine
from steppe.training.progress import Report
from steppe.training.results import RESULT, DamagedResultError, read_result

LOOK_SECONDS = 1.0
"""How often a run is asked how far it is."""

NODES_SECONDS = 2.0
"""How often the nodes of the cluster are counted."""

REACH_SECONDS = 5.0
"""How long a cluster may take to answer at its address."""

OBJECT_STORE = 80 * 1024 * 1024
"""Bytes of Ray's shared memory where it is started here: nearly its minimum, as nothing large passes through it."""

ENVIRONMENT = ("STEPPE_CACHE",)
"""Variables that decide where workers look for data sets."""


class RayExecutor(Crew["RemoteWorker"]):
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
            .remote(setup, address, environment)
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
                self.report.say(f"warning: {error}; it is trained again")
                (job.directory / RESULT).unlink(missing_ok=True)
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


class RemoteWorker:
    """An actor, as its driver holds it."""

    def __init__(self, place: int, ray: Any, actor: Any, sent: Callable[[Job], tuple[Job, str]]) -> None:
        self.place = place
        self._ray = ray
        self._actor = actor
        self._sent = sent
        self._host = ""
        self._hello: Any = actor.hello.remote()
        self._work: Any = None
        self._look: Any = None
        self._looked = 0.0

    def begin(self, job: Job) -> None:
        """Hand it a run."""
        self._work = self._actor.work.remote(*self._sent(job))

    def look(self) -> None:
        """Ask how far it is, unless that was asked a moment ago; of an idle one, whether it is still there."""
        if self._look is None and self._hello is None and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            self._look = self._actor.look.remote()

    def pending(self) -> list[Any]:
        """References to the answers that are still to come."""
        return [ref for ref in (self._hello, self._work, self._look) if ref is not None]

    def hear(self, ref: Any) -> list[Event]:
        """The events in an answer that has come."""
        if ref not in self.pending():  # it was heard together with another one
            return []
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            if ref == self._look and self._work is not None:  # the answer that counts will tell, too
                self._look = None
                return []
            self._hello = self._work = self._look = None
            return [Lost(self._reason(error))]
        if ref == self._hello:
            self._hello = None
            self._host, event = answer
            return [event]
        if ref == self._work:
            told, event = answer
            earlier = [] if self._look is None else self._heard_before(self._look)
            self._work = self._look = None
            return [*earlier, *told, event]
        self._look = None
        return list(answer)

    def _heard_before(self, look: Any) -> list[Event]:
        """The answer to a question that was asked before the run ended, which must not get lost."""
        try:
            return list(self._ray.get(look, timeout=LOOK_SECONDS))
        except self._ray.exceptions.RayError:
            return []

    def stop(self) -> None:
        """Ask it to write a checkpoint and to end."""
        with suppress(Exception):
            self._actor.stop.remote()

    def end(self) -> None:
        """End it at once."""
        with suppress(Exception):
            self._ray.kill(self._actor)

    def _reason(self, error: Exception) -> str:
        away = isinstance(error, self._ray.exceptions.ActorUnavailableError)
        why = "it cannot be reached any more" if away else _summary(str(error))
        return f"its worker{self._host and ' on ' + self._host} was lost: {why}"


def connect(address: str | None) -> tuple[Any, bool]:
    """Connect this process to a cluster, or start a Ray of its own; the module ``ray``, and whether it was started.

    Ray reports to nobody. One that is started here listens on this machine only, as whoever reaches Ray's ports can run
    programs (unless this process had imported ray before: then it is too late to tell it).

    Raises:
        SteppeError: Ray is not installed, the address is none, or nothing answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise SteppeError("--executor ray needs Ray, which is not installed: pip install 'steppe[ray]'")
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Ray replaces a loopback address by the machine's own, save where it thinks that there can be no cluster.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=cores(),
                object_store_memory=OBJECT_STORE,
                include_dashboard=False,
                **quiet,
            )
        else:
            _check_reachable(address)
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, SteppeError):
            raise
        raise SteppeError(
            f"no Ray cluster at {address or 'this machine'} ({_summary(str(error))}); start one with "
            "`ray start --head` and give its address; the driver has to run on one of its nodes"
        ) from error
    return ray, True


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    if address == "auto":
        return
    if "://" in address:
        raise SteppeError(
            f"--address takes host:port or auto, got {address!r}: start the sweep on a node of the cluster"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SteppeError(f"--address takes host:port, such as 10.0.0.1:6379, or auto; got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise SteppeError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): start one there with "
            f"`ray start --head --port={port} --disable-usage-stats`, or give --address auto on one of its nodes"
        ) from error


def _summary(message: str) -> str:
    """The sentence of one of Ray's messages that says most."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if "because" in line or "Error" in line]
    return (telling or lines or ["no reason given"])[-1].partition(". ")[0][:200].rstrip(".")
