"""What a user sees while a run trains: bars in a terminal, lines in a log file, nothing when silent."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Protocol, Self

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


def plain_console() -> Console:
    """The console of every command: names and paths appear as they are, whatever brackets and colons they hold."""
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


class Display:
    """A bar for the run and, in a sweep, one above it for all runs; where there is no terminal, one line an evaluation.

    Use as a context manager.

    Args:
        console: where to.
        runs: the number of runs of a sweep; ``None`` for a single run.
        done: how many of them are finished already.
    """

    def __init__(self, console: Console, *, runs: int | None = None, done: int = 0) -> None:
        self.console = console
        self.live = console.is_terminal
        self._name = ""
        self._total = 0
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
        self._run: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        if self._runs is not None:
            self._sweep = self._bars.add_task("all runs", total=self._runs, completed=self._done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, name: str, *, step: int, total: int) -> None:
        """A run starts, or goes on from ``step``."""
        self._name, self._total = name, total
        if self._run is not None:
            self._bars.reset(self._run, description=name, total=total, completed=step, note="")
        elif self.live:
            self._run = self._bars.add_task(name, total=total, completed=step, note="")
        else:
            self.console.print(f"{name}: {'from the start' if step == 0 else f'from step {step}'}", highlight=False)

    def advance(self, step: int, loss: float) -> None:
        """So many steps are made; the mean loss of late."""
        if self._run is not None:
            note = f"loss {loss:.3f}" if math.isfinite(loss) else ""
            self._bars.update(self._run, completed=step, note=note)

    def evaluated(self, step: int, validation: float, loss: float, seconds: float) -> None:
        """An evaluation is made."""
        if not self.live:
            self.console.print(
                f"{self._name}: step {step}/{self._total}, loss {loss:.3f}, validation {100 * validation:.1f} %, "
                f"{seconds:.3f} s/step",
                highlight=False,
                soft_wrap=True,
            )

    def say(self, message: str) -> None:
        """A line above the bars."""
        self.console.print(message, highlight=False, soft_wrap=not self.live)

    def run_over(self) -> None:
        """One more run of the sweep needs no more work."""
        self._done += 1
        if self._sweep is not None:
            self._bars.update(self._sweep, completed=self._done)
