"""Ctrl-C and SIGTERM during training: finish the step, save, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from steppe.training.team import Team, agreed

T = TypeVar("T")

_ending = threading.Event()


def stop_soon() -> None:
    """Have the run of this process, in whichever thread it trains, stop as after a first SIGTERM; and every later one.

    For a process that works for another one and is told by it, not by a signal, that it is time to end.
    """
    _ending.set()


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and did so in good order.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interruption:
    """While active, the first SIGINT or SIGTERM is only noted; a second one stops at once.

    Not where it is ``patient``: a launcher of several processes repeats what the terminal has told them already.

    Python allows signal handlers in the main thread only; elsewhere this does nothing.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.signum: int | None = None
        self._patient = patient
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()
        # A worker process that the terminal's Ctrl-C took down shows up as some other error first.
        if self.requested and isinstance(error, RuntimeError):
            raise Interrupted(self._cause) from error

    @property
    def requested(self) -> bool:
        """Whether a signal has come, or :func:`stop_soon` was called."""
        return self.signum is not None or _ending.is_set()

    def check(self) -> None:
        """Raise :class:`Interrupted` if a stop was requested."""
        if self.requested:
            raise Interrupted(self._cause)

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, with a check before each."""
        for item in items:
            self.check()
            yield item

    def check_together(self, team: Team) -> None:
        """The same for all processes of a run: each raises where any has been asked. Every process must call this."""
        if team.alone:
            self.check()
        elif signum := self.agreed(team):
            raise agreed(Interrupted(signum))

    def agreed(self, team: Team) -> int:
        """The signal that asked some process, or 0. Every process must call this."""
        return team.largest(int(self._cause) if self.requested else 0)

    @property
    def _cause(self) -> int:
        return signal.SIGTERM if self.signum is None else self.signum

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and not self._patient:
            raise Interrupted(signum)
        self.signum = signum
