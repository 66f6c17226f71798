"""Doing the runs of a sweep that are not done yet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from steppe.benchmark.protocol import Job
from steppe.benchmark.store import forget_failure, record_failure
from steppe.data import DomainDataset
from steppe.errors import SteppeError
from steppe.training.files import RunLockedError
from steppe.training.losses import NonFiniteLossError
from steppe.training.machine import Machine
from steppe.training.progress import Report
from steppe.training.pruning import Pruned, read_pruned
from steppe.training.results import DamagedResultError, NewerResultError, Result, read_result
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
    """Anything that can do jobs: this process, other processes, a cluster. A context manager, used more than once."""

    def __enter__(self) -> Self:
        """Ready for jobs."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Its workers end."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Do the jobs; yield an outcome for each, in the order in which they end, never ``busy``.

        Raises:
            SteppeError: something is wrong that concerns every job (a setting, the output directory).
        """


def execute(job: Job, dataset: DomainDataset, machine: Machine, report: Report, command: str) -> Outcome:
    """Do one job, whichever way it ends.

    A loss that is not finite, or an error nobody foresaw, is recorded and is this run's own; what a user has to mend
    (an unknown backbone, a full disk) concerns all runs and is raised.

    Raises:
        SteppeError: see above.
    """
    try:
        finished = _finished(job)
        if finished is not None:
            return Outcome(job, "finished", finished)
        if job.stop is not None and read_pruned(job.directory) is not None:
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
        forget_failure(job.directory)
        return Outcome(job, "finished", trainer.fit())
    except RunLockedError as error:
        return Outcome(job, "busy", error=str(error))
    except Pruned as error:
        return Outcome(job, "pruned", error=str(error))
    except NewerResultError as error:
        return Outcome(job, "failed", error=str(error))
    except NonFiniteLossError as error:
        record_failure(job.directory, error, command)
        return Outcome(job, "failed", error=str(error))
    except SteppeError:
        raise
    except Exception as error:
        record_failure(job.directory, error, command)
        return Outcome(job, "failed", error=f"{type(error).__name__}: {error}")


def _finished(job: Job) -> Result | None:
    """Its result; one that is damaged is named and replaced by the trainer, which holds the run while it does."""
    try:
        return read_result(job.directory)
    except DamagedResultError:
        return None


@dataclass(frozen=True)
class InProcess:
    """One run after the other, in this process.

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
        outcome = self._execute(job)
        if outcome.status == "busy":
            self.report.say(f"waiting for another process that is training {job.directory}")
        while outcome.status == "busy":
            time.sleep(POLL_SECONDS)
            outcome = self._execute(job)
        return outcome

    def _execute(self, job: Job) -> Outcome:
        return execute(job, self.dataset, self.machine, self.report, self.command)
