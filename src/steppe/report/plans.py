"""Which runs are meant: those of a store, or those of one sweep whose plan lies in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from steppe.errors import SteppeError
from steppe.report.filters import only
from steppe.report.reading import read_object
from steppe.report.runs import Runs, load_runs

PLAN = "sweep.json"
SWEEPS = "sweeps"


def open_runs(path: Path | str, words: Sequence[str] = ()) -> Runs:
    """The runs of the store ``path``, or of the sweep whose plan is in the folder ``path`` (``STORE/sweeps/ID``).

    Args:
        path: a folder of runs, or the folder or file of a plan.
        words: what is kept, ``["held-out=line", "seed=0,1"]``; see :func:`~steppe.report.filters.only`.

    Raises:
        SteppeError: there is no such folder, the plan cannot be read, or nothing is kept.
    """
    path = Path(path)
    plan = path if path.name == PLAN else path / PLAN
    planned_runs = plan.is_file() and plan.parent.parent.name == SWEEPS
    return only(words).of(_of_plan(plan) if planned_runs else load_runs(path))


def _of_plan(plan: Path) -> Runs:
    store = plan.parent.parent.parent
    wanted = set(planned(read_object(plan)))
    if not wanted:
        raise SteppeError(f"{plan} names no runs")
    found = load_runs(store)
    return Runs(
        (run for run in found if run.id in wanted),
        root=store,
        unfinished=[folder for folder in found.unfinished if folder.name in wanted],
        failures=[failure for failure in found.failures if failure.path.name in wanted],
        problems=[problem for problem in found.problems if wanted & set(problem.path.parts)],
    )


def planned(content: Any) -> Iterator[str]:
    """The ids of all runs that a plan names, wherever in it they are listed."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name in ("id", "run") and isinstance(value, str):
                yield value
            elif name in ("runs", "ids") and isinstance(value, list):
                yield from (item for item in value if isinstance(item, str))
                yield from planned([item for item in value if not isinstance(item, str)])
            elif name == "runs" and isinstance(value, dict):
                yield from value
                yield from planned(list(value.values()))
            else:
                yield from planned(value)
    elif isinstance(content, list):
        for item in content:
            yield from planned(item)
