"""The runs that the tables are about: of a sweep with a plan the selected ones, of everything else all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steppe.benchmark.plan import Cell, Plan, PlannedDraw, draws_of, read_plans
from steppe.benchmark.selection import Chosen, Draw, MissingRunsError, Selection, Trained, best_of, selection
from steppe.report.runs import Problem, Run, Runs, Searched, load_runs
from steppe.report.settings import HYPER
from steppe.training.words import Value

SEARCHES = {"random": "random draws", "tpe": "trials of TPE"}


@dataclass(frozen=True)
class Choice:
    """What was chosen for one data set, algorithm, held-out domain and seed.

    Attributes:
        draw: its number, of so many.
        values: the hyper-parameters that were searched, setting → value.
        step: of the checkpoint.
        run: the run, with the measures of that checkpoint.
        how: among what and by which rule it was chosen, in words.
    """

    cell: Cell
    draw: int
    of: int
    values: Mapping[str, Value]
    step: int
    run: Run
    how: str


@dataclass(frozen=True)
class Selected:
    """Runs for a table, and how they were chosen where they were."""

    runs: Runs
    choices: tuple[Choice, ...] = ()


def load_selected(root: Path | str, name: str | None = None) -> Selected:
    """The runs of a store, those of its plans selected.

    Args:
        root: the store.
        name: the selection (``training``, ``leave-one-out``, ``oracle``); by default each plan's first.

    Raises:
        SteppeError: ``root`` is not a folder, or there is no such selection.
    """
    found = load_runs(root)
    plans, damaged = read_plans(Path(root))
    found.problems += [Problem(error.path, error.message) for error in damaged]
    return select(found, plans, name)


def select(found: Runs, plans: Sequence[Plan], name: str | None = None) -> Selected:
    """The runs with each plan's replaced by those that a selection chooses among them.

    Draws whose runs failed or were pruned are passed over. A cell with unfinished draws is chosen among those that are
    finished; ``runs.notes`` says so.

    Raises:
        SteppeError: there is no such selection.
    """
    if not plans:
        return Selected(found)
    assert found.root is not None, "plans lie in a store"
    of_plans = {found.root / path for plan in plans for path in plan.paths}
    table = _Table(found)
    choices: list[Choice] = []
    for plan in plans:
        choices += table.choices(plan, selection(name or (plan.selection or ("training",))[0]))
    runs = Runs(
        [*(run for run in found if run.path not in of_plans), *(choice.run for choice in choices)],
        root=found.root,
        unfinished=found.unfinished,
        failures=found.failures,
        problems=found.problems,
        pruned=found.pruned,
        notes=[*found.notes, *table.notes],
    )
    return Selected(runs, tuple(choices))


def how_searched(plan: Plan, rule: Selection, cell: Cell) -> Searched:
    """How the runs of a cell and its kin, which differ in held-out domain and seed, were chosen."""
    search = ""
    if plan.search:
        kin = (cell.dataset, cell.fingerprint, cell.algorithm)
        alike = (draws for one, draws in plan.cells.items() if (one.dataset, one.fingerprint, one.algorithm) == kin)
        search = f"{max(map(len, alike))} {SEARCHES.get(plan.search, plan.search)}"
    drawn = _settings(plan.space.get(cell.dataset, {}).get(cell.algorithm, {}))
    return Searched(plan.id, search, rule.title, tuple(drawn))


class _Table:
    """The finished runs of a store by their directories below it."""

    def __init__(self, found: Runs) -> None:
        self.notes: list[str] = []
        self._root = found.root or Path()
        self._runs = {run.path: run for run in found}
        self._lost = dict.fromkeys((failure.path for failure in found.failures), "failed")
        self._lost |= dict.fromkeys(found.pruned, "pruned")
        self._trained: dict[Path, Trained] = {}

    def choices(self, plan: Plan, rule: Selection) -> list[Choice]:
        """What the rule chooses in each cell that has a finished draw."""
        found: list[Choice] = []
        passed: Counter[str] = Counter()
        waiting: dict[Cell, str] = {}
        for cell, planned in sorted(plan.cells.items(), key=lambda item: (item[0].dataset, item[0].seed, item[0])):
            draws = self._draws(cell, planned, rule)
            passed.update(draw.lost for draw in draws if draw.lost)
            there: list[Chosen] = []
            for draw in draws:
                try:
                    if not draw.lost:
                        score, checkpoint = rule.best(draw)
                        assert draw.run is not None, "a draw with a score has a run"
                        there.append(Chosen(draw, draw.run, checkpoint, score))
                except MissingRunsError as error:
                    waiting.setdefault(cell, str(error))
            if there:
                found.append(self._choice(cell, plan, rule, best_of(there), len(planned)))
        if passed:
            lost = ", ".join(f"{count} {what}" for what, count in sorted(passed.items()))
            self.notes.append(f"Draws passed over in the selection: {lost}.")
        if waiting:
            cell, first = next(iter(waiting.items()))
            cells = "1 cell is" if len(waiting) == 1 else f"{len(waiting)} cells are"
            self.notes.append(
                f"{cells} not complete, and chosen among the draws that are there. {rule.title}, {cell}, {first}"
            )
        return found

    def _draws(self, cell: Cell, planned: Mapping[int, PlannedDraw], rule: Selection) -> list[Draw]:
        def lost(path: Path) -> str:
            return self._lost.get(self._root / path, "")

        return draws_of(cell, planned, crosses=rule.crosses, trained=self._of, lost=lost)

    def _of(self, path: Path) -> Trained | None:
        where = self._root / path
        if where not in self._trained and where in self._runs:
            self._trained[where] = Trained.of(where, self._runs[where].result)
        return self._trained.get(where)

    def _choice(self, cell: Cell, plan: Plan, rule: Selection, chosen: Chosen, of: int) -> Choice:
        run, row = self._runs[chosen.run.path], chosen.checkpoint
        measured: dict[str, Any] = {
            "held_out_accuracy": row.held_out_accuracy,
            "held_out_accuracy_all": row.held_out_accuracy_all,
            "in_domain_accuracy": row.in_domain_accuracy,
            "validation_accuracy": row.validation_accuracy,
        }
        if rule.name != "training":  # an average's selected step is the last one averaged
            measured["selected_step"] = row.step
        how = how_searched(plan, rule, cell)
        plain = not plan.search and rule.name == "training"  # each is what it would be without the plan
        run = replace(run, result={**run.result, **measured}, searched=None if plain else how)
        step = int(run.result["selected_step"])
        return Choice(cell, chosen.draw.number, of, chosen.draw.values, step, run, how.text)


def _settings(names: Iterable[str]) -> list[str]:
    """Names of searched settings as the tables call them."""
    return [f"{HYPER}.{name}" if "." in name else name for name in names]
