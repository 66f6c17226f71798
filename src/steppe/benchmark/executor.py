"""Doing the runs of a sweep that are not done yet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from steppe.benchmark.protocol import Job
from steppe.benchmark.store import forget_failure, record_failure, recorded_error, status
from steppe.data import DomainDataset
from steppe.errors import SteppeError
from steppe.training.files import RunLockedError
from steppe.training.losses import NonFiniteLossError
from steppe.training.machine import Machine
from steppe.training.progress import Report
from steppe.training.pruning import Pruned, read_pruned
from steppe.training.results import DamagedResultError, NewerResultError, Result, read_result
from steppe.training.team import Team, team_of
from steppe.training.trainer import Trainer

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        status: ``finished``; ``failed``: recorded in its directory, or its result there is of a later steppe;
            ``pruned``: its search stopped it, which is recorded; ``busy``: another process is at it.
        result: what a finished run found.
        error: what went wrong, where something did.
    """

    job: Job
    status: Literal["finished", "failed", "pruned", "busy"]
    result: Result | None = None
    error: str = ""


class Executor(Protocol):
    """Anything that can do jobs: this process, other processes, a cluster.

    It may be asked more than once; as a context manager it ends what it started (processes, actors).
    """

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Do the jobs; yield an outcome for each, in the order in which they end, never ``busy``.

        Raises:
            SteppeError: something is wrong that concerns every job (a setting, the output directory).
            Interrupted: a signal asked to stop; the runs that were at work have written their checkpoints.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def execute(job: Job, dataset: DomainDataset, machine: Machine, report: Report, command: str) -> Outcome:
    """Do one job, whichever way it ends.

    A loss that is not finite, or an error nobody foresaw, is recorded and is this run's own; what a user has to mend
    (an unknown backbone, a full disk) concerns all runs and is raised.

    Raises:
        SteppeError: see above.
    """
    team = team_of(machine.device)
    try:
        finished = team.on_main(lambda: _finished(job))
        if finished is not None:
            return Outcome(job, "finished", finished)
        if job.stop is not None and team.on_main(lambda: read_pruned(job.directory)) is not None:
            return Outcome(job, "pruned")
        trainer = Trainer(
            job.config,
            out=job.directory,
            dataset=dataset,
            machine=machine,
            report=report,
            command=command,
            evaluated=job.stop,
        )
        if team.main:
            forget_failure(job.directory)
        return Outcome(job, "finished", trainer.fit())
    except RunLockedError as error:
        return Outcome(job, "busy", error=str(error))
    except Pruned as error:
        return Outcome(job, "pruned", error=str(error))
    except NewerResultError as error:
        return Outcome(job, "failed", error=str(error))
    except NonFiniteLossError as error:
        if team.main:
            record_failure(job.directory, error, command)
        return Outcome(job, "failed", error=str(error))
    except SteppeError:
        raise
    except Exception as error:
        if not team.alone:  # the processes are out of step, or one is lost: nothing more can be done together
            raise
        record_failure(job.directory, error, command)
        return Outcome(job, "failed", error=f"{type(error).__name__}: {error}")


def _finished(job: Job) -> Result | None:
    """Its result; one that is damaged is named and replaced by the trainer, which holds the run while it does."""
    try:
        return read_result(job.directory)
    except DamagedResultError:
        return None


def failed_elsewhere(job: Job) -> Outcome | None:
    """The outcome of a run that another process was at, where that has recorded a failure: it is not tried again here,
    for it would fail again."""
    if status(job.directory) != "failed":
        return None
    return Outcome(job, "failed", error=recorded_error(job.directory))


@dataclass(frozen=True)
class Call:
    """A run that the processes of a team are about to train together.

    Attributes:
        job: the run.
        dataset: the ``spec`` of its data set.
    """

    job: Job
    dataset: str

    @contextmanager
    def made(self, team: Team) -> Iterator[None]:
        """Inside, every process executes the run; an error that comes out of it is marked."""
        try:
            team.tell(self)
            yield
        except BaseException as error:
            error._steppe_call = self  # type: ignore[attr-defined]
            raise

    @staticmethod
    def ended(error: BaseException) -> bool:
        """Whether this error came out of a run."""
        return hasattr(error, "_steppe_call")


@dataclass(frozen=True)
class InProcess:
    """One run after the other, in this process; together with those that were launched beside it, if there are any.

    Runs that another process is at are left for last and then waited for, so that two sweeps on one store share the
    work and both end with all of it.
    """

    dataset: DomainDataset
    machine: Machine
    report: Report
    command: str

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: it has no workers."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """See :class:`Executor`."""
        others = []
        for job in jobs:
            outcome = self._execute(job)
            if outcome.status == "busy":
                others.append(job)
            else:
                yield outcome
        for job in others:
            yield self._wait(job)

    def _wait(self, job: Job) -> Outcome:
        outcome = failed_elsewhere(job) or self._execute(job)
        if outcome.status == "busy":
            self.report.say(f"waiting for another process that is training {job.directory}")
        while outcome.status == "busy":
            time.sleep(POLL_SECONDS)
            outcome = failed_elsewhere(job) or self._execute(job)
        return outcome

    def _execute(self, job: Job) -> Outcome:
        with Call(job, self.dataset.spec).made(team_of(self.machine.device)):
            return execute(job, self.dataset, self.machine, self.report, self.command)
