"""What a worker tells the driver: small, picklable, and all there is between the two."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steppe.errors import SteppeError
from steppe.training.files import OutputError
from steppe.training.machine import Machine
from steppe.training.progress import Report


@dataclass(frozen=True)
class Setup:
    """What a worker has to know before its first run.

    Attributes:
        machine: device and threads of its runs.
        command: the command line to put down in results and failures.
        spec: the data set that the driver opened.
        fingerprint: the identity of that data set's contents: a worker elsewhere must see the same.
        cores: what its runs may use, loading processes included; ``None``: no limit.
        version: of steppe in the driver.
    """

    machine: Machine
    command: str
    spec: str
    fingerprint: str
    cores: int | None
    version: str


@dataclass(frozen=True)
class Ready:
    """The worker has its data set open and waits for a run."""


@dataclass(frozen=True)
class Told:
    """A run says how far it is: a method of :class:`Report` and its arguments."""

    method: str
    arguments: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...] = ()

    def to(self, report: Report) -> None:
        """Pass it on."""
        getattr(report, self.method)(*self.arguments, **dict(self.named))


@dataclass(frozen=True)
class Ended:
    """A run is over: the status and the error of its :class:`~steppe.benchmark.executor.Outcome`.

    Attributes:
        spoilt: the worker must not do another one.
    """

    status: str
    error: str = ""
    spoilt: bool = False


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop and has written its checkpoint; the worker ends."""


@dataclass(frozen=True)
class Refused:
    """Something is wrong that concerns every run; the worker ends."""

    message: str
    about_output: bool = False

    @classmethod
    def because(cls, error: SteppeError) -> Refused:
        """What to tell the driver of this error."""
        return cls(str(error), isinstance(error, OutputError))

    def error(self) -> SteppeError:
        """The error, to be raised in the driver."""
        return OutputError(self.message) if self.about_output else SteppeError(self.message)


@dataclass(frozen=True)
class Lost:
    """The worker is gone, as the driver sees it; the reason completes "a run whose ..."."""

    reason: str
    out_of_memory: bool = False


Event = Ready | Told | Ended | Stopped | Refused | Lost


class Telling:
    """A :class:`Report` that makes an event of everything it is told; of steps, of which there may be many, it tells
    only so often.

    Args:
        send: gets the event; must not raise. A driver that is gone is no reason for a run to fail.
    """

    INTERVAL = 0.2

    def __init__(self, send: Callable[[Told], None]) -> None:
        self.send = send
        self._last = 0.0

    def begin(self, name: str, *, step: int, total: int) -> None:
        """A run starts, or goes on from ``step``."""
        self.send(Told("begin", (name,), (("step", step), ("total", total))))

    def advance(self, step: int, loss: float) -> None:
        """So many steps are made."""
        now = time.monotonic()
        if now - self._last >= self.INTERVAL:
            self._last = now
            self.send(Told("advance", (step, loss)))

    def evaluated(self, step: int, validation: float, loss: float, seconds: float) -> None:
        """An evaluation is made."""
        self.send(Told("evaluated", (step, validation, loss, seconds)))

    def say(self, message: str) -> None:
        """A line that must not get lost."""
        self.send(Told("say", (message,)))


class Mailbox:
    """Keeps what was told until it is asked for; of steps in a row only the last."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()

    def put(self, told: Told) -> None:
        """Keep it."""
        self._told.put(told)

    def take(self) -> list[Told]:
        """Everything since the last time, in order."""
        taken: list[Told] = []
        while not self._told.empty():
            told = self._told.get()
            if taken and told.method == taken[-1].method == "advance":
                taken.pop()
            taken.append(told)
        return taken
