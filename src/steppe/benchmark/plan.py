"""The plan of a sweep that searches or selects: which draws of hyper-parameters there are, and where their runs lie.

``RUNS/sweeps/<id>/sweep.json``. A run does not know which draw it is: its identity is the hash of its config. So runs
that two sweeps have in common are trained once, and this file says what belongs together. The id of a plan is the hash
of how is searched (settings, search, what is fixed), not of how far: more data sets, algorithms, domains, seeds or
draws are added to the same plan. Light: needs no torch.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steppe.benchmark.selection import Draw, Trained
from steppe.errors import SteppeError
from steppe.training.files import make_directory, output_error, write_json
from steppe.training.words import Value

SWEEPS = "sweeps"
PLAN = "sweep.json"
VERSION = 1


class DamagedPlanError(SteppeError):
    """A ``sweep.json`` that is there but cannot be used; ``path`` names it, ``message`` says why."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path} is damaged ({message}); the command of the sweep makes it again")
        self.path = path
        self.message = message


@dataclass(frozen=True, order=True)
class Cell:
    """What one choice of hyper-parameters is made for.

    Attributes:
        dataset: its name.
        fingerprint: the identity of its contents.
        algorithm: in its canonical spelling.
        held_out: the domain that is never seen.
        seed: the trial.
    """

    dataset: str
    fingerprint: str
    algorithm: str
    held_out: str
    seed: int

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.dataset}, {self.held_out} held out, seed {self.seed}"


@dataclass(frozen=True)
class PlannedDraw:
    """One choice of hyper-parameters for a cell.

    Attributes:
        number: 0 for the defaults.
        values: setting → value.
        run: the directory of the run that holds out the cell's domain alone, below the store's root.
        crossed: other domain → the directory of the run that holds out both; empty where none is needed.
    """

    number: int
    values: Mapping[str, Value]
    run: Path
    crossed: Mapping[str, Path] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The directories of all its runs."""
        return (self.run, *self.crossed.values())


@dataclass(frozen=True)
class Plan:
    """A sweep's plan.

    Attributes:
        id: twelve hexadecimal digits.
        search: ``random``, ``tpe``, or empty where hyper-parameters are as given.
        selection: the names of the rules that were asked for; the first is the table's.
        command: the last command that worked on it.
        settings: the settings that are not drawn.
        space: data set → algorithm → setting → range, source and default, in words.
        cells: what there is.
    """

    id: str
    search: str
    selection: tuple[str, ...]
    command: str
    settings: Mapping[str, Any]
    space: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    cells: Mapping[Cell, Mapping[int, PlannedDraw]] = field(default_factory=dict)

    @property
    def paths(self) -> set[Path]:
        """The directories of all runs, below the store's root."""
        return {path for draws in self.cells.values() for draw in draws.values() for path in draw.paths}

    def limited(self, cells: Collection[Cell], draws: int) -> Plan:
        """The part that has these cells, and of each the draws below ``draws``."""
        kept = {
            cell: {number: draw for number, draw in planned.items() if number < draws}
            for cell, planned in self.cells.items()
            if cell in cells
        }
        return replace(self, cells=kept)

    def merged(self, other: Plan) -> Plan:
        """Everything that either has; where they differ, as ``other`` says."""
        cells = {cell: dict(draws) for cell, draws in self.cells.items()}
        for cell, draws in other.cells.items():
            own = cells.setdefault(cell, {})
            for number, draw in draws.items():
                before = own.get(number)
                same = before is not None and before.run == draw.run
                crossed = {**before.crossed, **draw.crossed} if before is not None and same else draw.crossed
                own[number] = replace(draw, crossed=crossed)
        space = {dataset: dict(algorithms) for dataset, algorithms in self.space.items()}
        for dataset, algorithms in other.space.items():
            space.setdefault(dataset, {}).update(algorithms)
        return replace(other, cells=cells, space=space)


def plan_directory(root: Path, id: str) -> Path:
    """Where the plan with this id and its studies lie."""
    return root / SWEEPS / id


def write_plan(root: Path, plan: Plan, *, say: Callable[[str], None]) -> Plan:
    """Add ``plan`` to what is there under its id, and return both together; safe with several processes at once.

    A file that is damaged is named to ``say`` and made again.

    Raises:
        OutputError: the directory cannot be written.
    """
    path = make_directory(plan_directory(root, plan.id)) / PLAN
    with locked(path):
        try:
            before = read_plan(path)
        except DamagedPlanError as error:
            say(f"warning: {error}")
            before = None
        together = plan if before is None else before.merged(plan)
        if together != before:
            write_json(path, _as_json(together))
    return together


def read_plan(path: Path) -> Plan | None:
    """The plan in a ``sweep.json``; ``None`` where there is no such file.

    Raises:
        DamagedPlanError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise DamagedPlanError(path, f"version {content['version']!r}; this steppe reads version {VERSION}")
        return _from_json(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedPlanError):
            raise
        raise DamagedPlanError(path, f"{type(error).__name__}: {error}") from error


def read_plans(root: Path) -> tuple[list[Plan], list[DamagedPlanError]]:
    """Every plan in a store, and what is wrong with those that cannot be read."""
    plans, damaged = [], []
    for path in sorted((root / SWEEPS).glob(f"*/{PLAN}")):
        try:
            plan = read_plan(path)
        except DamagedPlanError as error:
            damaged.append(error)
        else:
            plans += [plan] if plan is not None else []
    return plans, damaged


def draws_of(
    cell: Cell,
    planned: Mapping[int, PlannedDraw],
    *,
    crosses: bool,
    trained: Callable[[Path], Trained | None],
    lost: Callable[[Path], str],
) -> list[Draw]:
    """The draws of a cell as a selection wants them.

    Args:
        crosses: whether the selection asks for runs that hold out two domains; what becomes of these does not matter
            otherwise.
        trained: directory (below the root) → its finished run.
        lost: directory → why there will be none (``failed``, ``pruned``), or an empty text.
    """
    draws = []
    for number, draw in sorted(planned.items()):
        paths = draw.paths if crosses else (draw.run,)
        runs = {path: trained(path) for path in paths}
        reasons = [lost(path) for path, run in runs.items() if run is None]
        crossed = {domain: runs[path] for domain, path in draw.crossed.items()} if crosses else {}
        draws.append(
            Draw(
                number=number,
                held_out=cell.held_out,
                run=runs[draw.run],
                values=draw.values,
                crossed={domain: run for domain, run in crossed.items() if run is not None},
                lost=next(filter(None, reasons), ""),
            )
        )
    return draws


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file among the processes that ask for it, as soon as the others let go; a killed one does at once.

    Raises:
        OutputError: the lock beside it cannot be written.
    """
    beside = path.with_name(f".{path.name}.lock")
    try:
        file = beside.open("a")
    except OSError as error:
        raise output_error(beside, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _as_json(plan: Plan) -> dict[str, Any]:
    def run(path: Path) -> dict[str, str]:
        return {"id": path.name, "path": path.as_posix()}

    def draw(planned: PlannedDraw) -> dict[str, Any]:
        crossed = {domain: run(path) for domain, path in planned.crossed.items()}
        found = {"draw": planned.number, "values": dict(planned.values), "run": run(planned.run)}
        return {**found, "crossed": crossed} if crossed else found

    return {
        "version": VERSION,
        "id": plan.id,
        "command": plan.command,
        "search": plan.search,
        "selection": list(plan.selection),
        "settings": dict(plan.settings),
        "space": plan.space,
        "cells": [
            {**vars(cell), "draws": [draw(one) for _, one in sorted(draws.items())]}
            for cell, draws in sorted(plan.cells.items())
        ],
    }


def _from_json(content: Mapping[str, Any]) -> Plan:
    cells: dict[Cell, dict[int, PlannedDraw]] = {}
    for row in content["cells"]:
        cell = Cell(
            dataset=str(row["dataset"]),
            fingerprint=str(row["fingerprint"]),
            algorithm=str(row["algorithm"]),
            held_out=str(row["held_out"]),
            seed=int(row["seed"]),
        )
        cells[cell] = {
            int(one["draw"]): PlannedDraw(
                number=int(one["draw"]),
                values=dict(one["values"]),
                run=Path(one["run"]["path"]),
                crossed={domain: Path(run["path"]) for domain, run in one.get("crossed", {}).items()},
            )
            for one in row["draws"]
        }
    return Plan(
        id=str(content["id"]),
        search=str(content["search"]),
        selection=_texts(content["selection"]),
        command=str(content["command"]),
        settings=dict(content["settings"]),
        space=content["space"],
        cells=cells,
    )


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
