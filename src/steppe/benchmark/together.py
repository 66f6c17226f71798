"""A sweep whose runs are each trained by several processes: the first one walks it, the others follow.

Which runs there are, whether one is finished, what a search proposes and what is printed is the first process's alone;
the others hear from it of each run, and train it with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from steppe.benchmark.executor import Call, execute
from steppe.data import DomainDataset
from steppe.training.machine import Machine
from steppe.training.progress import Silent
from steppe.training.team import Team


@dataclass
class Ending:
    """That there is nothing more to do, and the exit status of the whole."""

    status: int = 1


@contextmanager
def leading(team: Team) -> Iterator[Ending]:
    """The first process's side: inside, it executes runs; whatever ends this, the others hear of it.

    Only where a run raised they do not: they have raised the same, or are lost, as one process was.
    """
    ending = Ending()
    try:
        yield ending
    except BaseException as error:
        if not Call.ended(error):
            team.tell(ending)
        raise
    team.tell(ending)


def follow(team: Team, datasets: Mapping[str, DomainDataset], machine: Machine, command: str) -> int:
    """The other processes' side: take part in each run until there is nothing more to do; the exit status.

    Args:
        team: the processes.
        datasets: the opened data sets by their ``spec``.
        machine: as the first process's.
        command: the command line.

    Raises:
        BaseException: what a run raised.
    """
    while isinstance(told := team.tell(None), Call):
        execute(told.job, datasets[told.dataset], machine, Silent(), command)
    assert isinstance(told, Ending), "a sweep has calls, and one end"
    return told.status
