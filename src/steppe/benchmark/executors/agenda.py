"""What the driver deals with: workers, and the runs that it still has to hand out to them."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from steppe.benchmark.protocol import Job


class Worker(Protocol):
    """A worker, as its driver sees it.

    Attributes:
        place: a small number that no other living worker of this driver has.
    """

    place: int

    def begin(self, job: Job) -> None:
        """Hand it a run. Raises ``OSError`` if the worker is gone."""

    def stop(self) -> None:
        """Ask it to write a checkpoint and to end; must not raise."""

    def end(self) -> None:
        """End it at once and wait until it is gone; must not raise."""


@dataclass
class Agenda:
    """The runs of one call of :meth:`Crew.run` that have no outcome yet.

    Attributes:
        waiting: to be handed out, in this order.
        held: runs that another process is at.
        losses: how many workers each run has lost.
    """

    waiting: deque[Job]
    held: list[Job] = field(default_factory=list)
    losses: Counter[Path] = field(default_factory=Counter)
    looked: float = 0.0
    told: bool = False
