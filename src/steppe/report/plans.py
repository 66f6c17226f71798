"""Which runs are meant: those of a store, or of one sweep whose plan lies in it; and which of them are selected."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from steppe.benchmark.plan import PLAN, SWEEPS, Plan, read_plan, read_plans
from steppe.errors import SteppeError
from steppe.report.filters import only
from steppe.report.runs import Problem, Runs, load_runs
from steppe.report.selected import Choice, select


@dataclass(frozen=True)
class OpenedRuns:
    """Runs for tables, and all runs that they were selected from.

    Attributes:
        runs: of sweeps with a plan the selected ones, of everything else all.
        everything: without a selection.
        choices: what was selected, and how; empty where there is no plan.
    """

    runs: Runs
    everything: Runs
    choices: tuple[Choice, ...]


def open_selected(path: Path | str, words: Sequence[str] = (), name: str | None = None) -> OpenedRuns:
    """The runs of a store, or of one of its sweeps, with those of plans selected.

    Args:
        path: a folder of runs, or the folder or file of a plan (``STORE/sweeps/ID``).
        words: what is kept, ``["held-out=line", "seed=0,1"]``; see :func:`~steppe.report.filters.only`.
        name: the selection (``training``, ``leave-one-out``, ``oracle``); by default each plan's first.

    Raises:
        SteppeError: there is no such folder or selection, the plan cannot be read, or nothing is kept.
    """
    everything, plans = _opened(Path(path))
    everything = only(words).of(everything)
    if words:
        there = {run.path for run in everything}
        plans = [_of(plan, there, everything.root or Path()) for plan in plans]
    selected = select(everything, [plan for plan in plans if plan.cells], name)
    return OpenedRuns(selected.runs, everything, selected.choices)


def open_runs(path: Path | str, words: Sequence[str] = ()) -> Runs:
    """The runs of a store, or of one of its sweeps, without a selection; see :func:`open_selected`."""
    return only(words).of(_opened(Path(path))[0])


def _opened(path: Path) -> tuple[Runs, list[Plan]]:
    file = path if path.name == PLAN else path / PLAN
    if not (file.is_file() and file.parent.parent.name == SWEEPS):
        found = load_runs(path)
        plans, damaged = read_plans(path)
        found.problems += [Problem(error.path, error.message) for error in damaged]
        return found, plans
    plan = read_plan(file)
    if plan is None or not plan.paths:
        raise SteppeError(f"{file} names no runs")
    store = file.parent.parent.parent
    found = load_runs(store)
    folders = {store / path for path in plan.paths}
    part = copy(found)
    part[:] = [run for run in found if run.path in folders]
    part.unfinished = [folder for folder in found.unfinished if folder in folders]
    part.pruned = [folder for folder in found.pruned if folder in folders]
    part.failures = [failure for failure in found.failures if failure.path in folders]
    part.problems = [problem for problem in found.problems if folders & {problem.path, problem.path.parent}]
    return part, [plan]


def _of(plan: Plan, there: set[Path], root: Path) -> Plan:
    """The cells of which a run is left."""
    cells = {cell for cell, draws in plan.cells.items() if any(root / draw.run in there for draw in draws.values())}
    return plan.limited(cells, 1 + max((number for draws in plan.cells.values() for number in draws), default=0))
