"""What the driver does: runs out, outcomes in, whatever becomes of the workers in between."""

from __future__ import annotations

import abc
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from steppe import __version__
from steppe.benchmark.executor import Outcome, failed_elsewhere
from steppe.benchmark.executors.agenda import Agenda, Worker
from steppe.benchmark.executors.events import Ended, Event, Lost, Ready, Refused, Setup, Stopped, Told
from steppe.benchmark.protocol import Job
from steppe.benchmark.store import record_failure, status
from steppe.data import DomainDataset
from steppe.errors import SteppeError
from steppe.training.config import run_name
from steppe.training.files import RunLockedError, run_lock
from steppe.training.interruption import Interruption
from steppe.training.machine import Machine
from steppe.training.progress import Report, lane
from steppe.training.results import DamagedResultError, read_result

RETRIES = 2
"""How often a run whose worker was lost is tried again where nothing else is said."""

WAIT_SECONDS = 0.2
"""How long the driver waits for its workers at a time, before it looks around."""

HELD_SECONDS = 1.0
"""How often it looks after runs that another process is at."""

FRUITLESS_STARTS = 3
"""So many workers in a row that end before they are ready are a fault of the machine, not of chance."""


class WorkerLostError(Exception):
    """The worker of a run was lost, as often as it was tried."""


W = TypeVar("W", bound=Worker)


class Crew(abc.ABC, Generic[W]):
    """An executor with workers: what processes of this machine and actors of a cluster have in common.

    A run goes to a worker and is over when that says so. A worker that is gone before (killed, out of memory, its
    machine lost) is replaced, and its run goes on from its last checkpoint on another one, at most ``retries`` times;
    then it is recorded as failed, with the reason. The lock of a run belongs to the process that trains it, so a run
    that another driver is at comes back ``busy`` and is looked after until that is done.

    Args:
        dataset: the data set of the runs, whose pictures have been checked. Workers open it themselves.
        machine: of the runs.
        report: shows what the workers tell.
        command: the command line to put down in the files of a run.
        retries: see above.
    """

    def __init__(
        self, dataset: DomainDataset, machine: Machine, report: Report, command: str, *, retries: int = RETRIES
    ) -> None:
        self.machine = machine
        self.report = report
        self.command = command
        self.retries = retries
        self._spec, self._fingerprint = dataset.spec, dataset.fingerprint()
        self._starting: list[W] = []
        self._idle: list[W] = []
        self._working: dict[W, Job] = {}
        self._fruitless = 0
        self._course: Generator[Outcome, None, None] | None = None

    # --- what a kind of worker has to provide ---

    @abc.abstractmethod
    def _hire(self, place: int, setup: Setup) -> W | None:
        """Start one more worker, or ``None`` where this is not the time. It says :class:`Ready` before its first run.

        Raises:
            SteppeError: none can ever be started.
        """

    @abc.abstractmethod
    def _events(self, seconds: float) -> list[tuple[W, Event]]:
        """What the workers told, waiting at most so long for the first event; in order for each worker.

        :class:`Lost`, :class:`Stopped` and :class:`Refused` are the last that is heard of a worker.
        """

    def _may_begin(self, worker: W) -> bool:
        """Whether this idle worker can take up a run now."""
        return True

    def _take(self, job: Job) -> Outcome | None:
        """Called before a run is handed out; an outcome says that it need not be."""
        return None

    def _give_back(self, job: Job) -> None:
        """Called when the worker of a run is done with it or gone, whichever way; what it left is to be fetched."""

    def _release(self, job: Job) -> None:
        """Called when a run has its outcome, or is given up."""

    # --- the executor ---

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """See :class:`~steppe.benchmark.executor.Executor`."""
        self._leave_course()
        self._course = self._run(jobs)
        return self._course

    def _run(self, jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        agenda = Agenda(deque(jobs))
        with Interruption() as interruption:
            try:
                while agenda.waiting or agenda.held or self._working:
                    interruption.check()
                    yield from self._look_after_held(agenda)
                    yield from self._hand_out(agenda)
                    for worker, event in self._events(WAIT_SECONDS):
                        outcome = self._hear(worker, event, agenda)
                        if outcome is not None:
                            yield outcome
            finally:
                self._stop_working()

    def close(self) -> None:
        """End every worker: those at work after a checkpoint, the others at once."""
        try:
            self._leave_course()
        finally:
            for worker in self._workers():
                worker.end()
            self._starting, self._idle = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- runs out ---

    def _look_after_held(self, agenda: Agenda) -> Iterator[Outcome]:
        now = time.monotonic()
        if not agenda.held or now - agenda.looked < HELD_SECONDS:
            return
        agenda.looked = now
        if not agenda.told and not agenda.waiting and not self._working:
            agenda.told = True
            self.report.say(f"waiting for another process that is training {agenda.held[0].directory}")
        held, agenda.held = agenda.held, []
        for job in held:
            match status(job.directory):
                case "running":
                    agenda.held.append(job)
                case "finished":
                    yield self._outcome(job, Ended("finished"))
                case _:
                    failed = failed_elsewhere(job)
                    if failed is not None:
                        yield failed
                    else:
                        agenda.waiting.append(job)

    def _hand_out(self, agenda: Agenda) -> Iterator[Outcome]:
        while agenda.waiting:
            worker = next((worker for worker in self._idle if self._may_begin(worker)), None)
            if worker is None:
                break
            job = agenda.waiting.popleft()
            try:
                outcome = self._take(job)
            except RunLockedError:
                agenda.held.append(job)
                continue
            if outcome is not None:
                yield outcome
                continue
            self._idle.remove(worker)
            try:
                worker.begin(job)
            except OSError:  # it has ended while it was idle: no fault of this run
                worker.end()
                self._release(job)
                agenda.waiting.appendleft(job)
            else:
                self._working[worker] = job
        while len(agenda.waiting) > len(self._starting) + len(self._idle):
            hired = self._hire(self._free_place(), self._setup())
            if hired is None:
                break
            self._starting.append(hired)

    def _setup(self) -> Setup:
        return Setup(
            machine=self.machine,
            command=self.command,
            spec=self._spec,
            fingerprint=self._fingerprint,
            cores=None,
            version=__version__,
        )

    def _free_place(self) -> int:
        taken = {worker.place for worker in self._workers()}
        return next(place for place in range(len(taken) + 1) if place not in taken)

    def _workers(self) -> list[W]:
        return [*self._starting, *self._idle, *self._working]

    # --- outcomes in ---

    def _hear(self, worker: W, event: Event, agenda: Agenda) -> Outcome | None:
        match event:
            case Told():
                event.to(lane(self.report, worker.place))
            case Ready():
                self._fruitless = 0
                self._starting.remove(worker)
                self._idle.append(worker)
            case Ended():
                job = self._working.pop(worker)
                if event.spoilt:
                    worker.end()
                else:
                    self._idle.append(worker)
                return self._over(job, event, agenda)
            case Refused():
                refused = self._forget(worker)
                worker.end()
                if refused is not None:
                    self._release(refused)
                raise event.error()
            case Stopped() | Lost():
                reason = event.reason if isinstance(event, Lost) else "its worker was asked to stop"
                lost = self._forget(worker)
                worker.end()
                if self._fruitless >= FRUITLESS_STARTS:
                    raise SteppeError(f"no worker comes up, {self._fruitless} tries in a row: {reason}")
                if lost is not None:
                    return self._again(lost, reason, agenda)
        return None

    def _over(self, job: Job, ended: Ended, agenda: Agenda) -> Outcome | None:
        self._give_back(job)
        if ended.status == "busy":
            self._release(job)
            agenda.held.append(job)
            return None
        outcome = self._outcome(job, ended)
        self._release(job)
        return outcome

    def _again(self, job: Job, reason: str, agenda: Agenda) -> Outcome | None:
        """The worker of this run is gone: try again, or give up."""
        self._give_back(job)
        self._release(job)
        agenda.losses[job.directory] += 1
        losses = agenda.losses[job.directory]
        name = run_name(job.config)
        if losses <= self.retries:
            self.report.say(f"{name}: {reason}; it goes on from its last checkpoint (retry {losses} of {self.retries})")
            agenda.waiting.appendleft(job)
            return None
        times = "once" if losses == 1 else f"{losses} times"
        error = WorkerLostError(f"{reason}; the run lost its worker {times} and was given up")
        try:
            with run_lock(job.directory):
                if status(job.directory) != "finished":
                    record_failure(job.directory, error, self.command)
                    return Outcome(job, "failed", error=str(error))
        except RunLockedError:
            agenda.held.append(job)
            return None
        return self._outcome(job, Ended("finished"))

    def _outcome(self, job: Job, ended: Ended) -> Outcome:
        if ended.status != "finished":
            return Outcome(job, cast(Any, ended.status), error=ended.error)
        try:
            result = read_result(job.directory)
        except DamagedResultError as error:
            return Outcome(job, "failed", error=str(error))
        if result is None:
            raise SteppeError(
                f"a worker finished the run in {job.directory}, and its result is not to be seen from here: "
                "the workers must share the disk of the store, or its exchange"
            )
        return Outcome(job, "finished", result)

    # --- the end ---

    def _forget(self, worker: W) -> Job | None:
        """Strike a worker that is gone off the lists; the run that it was at."""
        if worker in self._starting:
            self._starting.remove(worker)
            self._fruitless += 1
        if worker in self._idle:
            self._idle.remove(worker)
        return self._working.pop(worker, None)

    def _leave_course(self) -> None:
        """End a call of :meth:`run` whose outcomes were not all asked for."""
        if self._course is not None:
            self._course.close()
            self._course = None

    def _stop_working(self) -> None:
        """Have every run at work write a checkpoint and wait for that; a signal meanwhile ends them at once."""
        if not self._working:
            return
        count = len(self._working)
        runs = "1 run writes its checkpoint" if count == 1 else f"{count} runs write their checkpoints"
        self.report.say(f"stopping: {runs}")
        try:
            for worker in list(self._working):
                worker.stop()
            while self._working:
                for worker, event in self._events(WAIT_SECONDS):
                    if isinstance(event, Ended | Stopped | Refused | Lost):
                        job = self._forget(worker)
                        worker.end()
                        if job is not None:
                            self._give_back(job)
                            self._release(job)
        finally:
            for worker in list(self._working):
                worker.end()
                self._release(self._working.pop(worker))
