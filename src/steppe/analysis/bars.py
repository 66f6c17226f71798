"""A bar on standard error for what takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(label: str, total: int | None, shown: bool) -> Iterator[Callable[[], None]]:
    """Gives the function to call after each of ``total`` parts of the work; it does nothing where rich is missing.

    Args:
        label: what is being done, in a few words.
        total: how many parts there are; ``None`` where nobody knows.
        shown: false shows nothing.
    """
    if not shown:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield lambda: None
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    ) as shown_bar:
        task = shown_bar.add_task(label, total=total)
        yield lambda: shown_bar.advance(task)


def length(loader: Any) -> int | None:
    """How many batches a loader has, where it knows."""
    try:
        return len(loader)
    except TypeError:  # also of a DataLoader around a dataset that has none
        return None
