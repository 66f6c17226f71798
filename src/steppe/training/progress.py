"""What a user sees while a run trains: bars in a terminal, lines in a log file, nothing when silent."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from steppe.training.team import leads


def plain_console() -> Console:
    """The console of every command: names and paths appear as they are, whatever brackets and colons they hold."""
    if not leads():  # of processes that were launched together one talks
        return Console(quiet=True, force_terminal=False)
    return Console(markup=False, highlight=False, emoji=False)


class Report(Protocol):
    """What training tells about itself."""

    def begin(self, name: str, *, step: int, total: int) -> None:
        """A run starts, or goes on from ``step``."""

    def advance(self, step: int, loss: float) -> None:
        """So many steps are made; the mean loss of late (NaN before the first line of the log)."""

    def evaluated(self, step: int, validation: float, loss: float, seconds: float) -> None:
        """An evaluation is made: mean validation accuracy, training loss, seconds per step of late."""

    def say(self, message: str) -> None:
        """A line that must not get lost."""


class Silent:
    """Shows nothing."""

    def begin(self, name: str, *, step: int, total: int) -> None:
        """Nothing."""

    def advance(self, step: int, loss: float) -> None:
        """Nothing."""

    def evaluated(self, step: int, validation: float, loss: float, seconds: float) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""


@runtime_checkable
class Lanes(Protocol):
    """A report on several runs at a time."""

    def lane(self, place: int) -> Report:
        """What the worker in this place, from 0, tells its runs to."""


def lane(report: Report, place: int) -> Report:
    """The part of a report for one of several workers; the whole, where it has no parts."""
    return report.lane(place) if isinstance(report, Lanes) else report


class Display:
    """A bar for each run at work and, in a sweep, one above them for all runs; where there is no terminal, one line an
    evaluation.

    Use as a context manager. What it is told as a :class:`Report` goes to the first bar.

    Args:
        console: where to.
        runs: the number of runs of a sweep; ``None`` for a single run.
        done: how many of them are finished already.
    """

    def __init__(self, console: Console, *, runs: int | None = None, done: int = 0) -> None:
        self.console = console
        self.live = console.is_terminal
        self._runs = runs
        self._done = done
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            # Not the whole width: the terminal's echo of Ctrl-C would then wrap and leave a line behind.
            BarColumn(bar_width=min(40, max(8, console.width - 70))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self._sweep: TaskID | None = None
        self._lanes: dict[int, _Lane] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        if self._runs is not None:
            self._sweep = self._bars.add_task("all runs", total=self._runs, completed=self._done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def lane(self, place: int) -> Report:
        """The bar of one of several workers, counted from 0."""
        return self._lanes.setdefault(place, _Lane(self.console, self._bars))

    def begin(self, name: str, *, step: int, total: int) -> None:
        """A run starts, or goes on from ``step``."""
        self.lane(0).begin(name, step=step, total=total)

    def advance(self, step: int, loss: float) -> None:
        """So many steps are made; the mean loss of late."""
        self.lane(0).advance(step, loss)

    def evaluated(self, step: int, validation: float, loss: float, seconds: float) -> None:
        """An evaluation is made."""
        self.lane(0).evaluated(step, validation, loss, seconds)

    def say(self, message: str) -> None:
        """A line above the bars."""
        self.lane(0).say(message)

    def run_over(self) -> None:
        """One more run of the sweep needs no more work."""
        self._done += 1
        if self._sweep is not None:
            self._bars.update(self._sweep, completed=self._done)


class _Lane:
    """The runs of one worker, one after the other, on one bar."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console = console
        self._bars = bars
        self._name = ""
        self._total = 0
        self._run: TaskID | None = None

    def begin(self, name: str, *, step: int, total: int) -> None:
        self._name, self._total = name, total
        if self._run is not None:
            self._bars.reset(self._run, description=name, total=total, completed=step, note="")
        elif self._console.is_terminal:
            self._run = self._bars.add_task(name, total=total, completed=step, note="")
        else:
            self._console.print(f"{name}: {'from the start' if step == 0 else f'from step {step}'}", highlight=False)

    def advance(self, step: int, loss: float) -> None:
        if self._run is not None:
            note = f"loss {loss:.3f}" if math.isfinite(loss) else ""
            self._bars.update(self._run, completed=step, note=note)

    def evaluated(self, step: int, validation: float, loss: float, seconds: float) -> None:
        if not self._console.is_terminal:
            self._console.print(
                f"{self._name}: step {step}/{self._total}, loss {loss:.3f}, validation {100 * validation:.1f} %, "
                f"{seconds:.3f} s/step",
                highlight=False,
                soft_wrap=True,
            )

    def say(self, message: str) -> None:
        self._console.print(message, highlight=False, soft_wrap=not self._console.is_terminal)
