"""Which of a search's draws an algorithm is compared with: the published values, unless another leads by a margin."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steppe.benchmark.plan import Plan, PlannedDraw, read_plans
from steppe.benchmark.store import status
from steppe.training.config import Settings
from steppe.training.recipes import parse
from steppe.training.results import read_result

VALIDATION = ("validation", "out")
"""What the pictures that select a checkpoint are called in a result, under either split."""


@dataclass(frozen=True)
class Choice:
    """What an algorithm is compared with.

    Attributes:
        draw: its number in the search; 0 is the published values.
        values: hyper-parameter → value.
        accuracy: in validation, the mean over the domains left out.
        runs: the directories of its runs, below the store's root.
    """

    draw: int
    values: Mapping[str, Any]
    accuracy: float
    runs: tuple[Path, ...]


def margin(accuracy: float, pictures: int) -> float:
    """One binomial standard error of the difference of two accuracies on so many pictures each: sqrt(2 p (1 − p) / n).

    Too large where, as here, both look at the same pictures; so it is careful.
    """
    return math.sqrt(2 * accuracy * (1 - accuracy) / pictures)


def choose(store: Path, settings: Settings, algorithm: str, held_out: Sequence[str]) -> Choice | None:
    """The values of the best draw in validation; the published ones unless the best leads by more than :func:`margin`.

    One choice serves all held-out domains and seeds of the sweep. It is made by the validation pictures of seed 0 of
    the domains trained on, when those in ``held_out`` are left out in turn. So where the sweep leaves out another
    domain, that domain's validation pictures had a part in the choice (its test pictures had none), which no user who
    has never seen it could repeat; and seed 0 was looked at once more often than the other seeds. Where the sweep
    leaves out just the domain that was searched (the sets made of MNIST), nothing of it is seen by the choice.

    Args:
        store: of the search.
        settings: the present ones: of several plans the one that has them counts.
        algorithm: any spelling of it.
        held_out: the domains that the search left out.

    Returns:
        ``None`` where the published values and every other draw failed for some domain.

    Raises:
        SystemExit: there is not exactly one plan with these settings, or it has a run that is neither finished nor
            failed.
    """
    name, plan = parse(algorithm).name, _plan(store, settings, parse(algorithm).name)
    draws: dict[int, list[PlannedDraw]] = defaultdict(list)
    for cell, planned in plan.cells.items():
        if cell.algorithm == name and cell.held_out in held_out and cell.seed == 0:
            for number, draw in planned.items():
                draws[number].append(draw)
    found = {number: one for number, own in draws.items() if (one := _score(store, own)) and len(own) == len(held_out)}
    if not found:
        return None
    best = min(found, key=lambda number: (-found[number][0], number))
    if 0 in found and found[best][0] - found[0][0] <= margin(found[0][0], found[0][1]):
        best = 0
    return Choice(best, draws[best][0].values, found[best][0], tuple(draw.run for draw in draws[best]))


def validation_pictures(content: Mapping[str, Any]) -> int:
    """How many pictures of the domains trained on a result's validation accuracy is about."""
    counts = {domain: parts for domain, parts in content["counts"].items() if domain != content["held_out"]}
    return sum(next(parts[name] for name in VALIDATION if name in parts) for parts in counts.values())


def _plan(store: Path, settings: Settings, algorithm: str) -> Plan:
    present = json.loads(json.dumps(dataclasses.asdict(settings)))
    plans, damaged = read_plans(store)
    if damaged:
        raise SystemExit(str(damaged[0]))
    of_these = [
        plan for plan in plans if plan.settings == present and any(cell.algorithm == algorithm for cell in plan.cells)
    ]
    if len(of_these) != 1:
        raise SystemExit(f"{store} has {len(of_these)} searches of {algorithm} with these settings, not one")
    return of_these[0]


def _score(store: Path, draws: Sequence[PlannedDraw]) -> tuple[float, int] | None:
    """Mean validation accuracy of a draw's runs, and the pictures of the one that has fewest; ``None`` if one failed.

    The runs of different held-out domains share pictures, so the pictures of one count, not of all.
    """
    contents = []
    for draw in draws:
        state = status(store / draw.run)
        if state == "failed":
            return None
        result = read_result(store / draw.run) if state == "finished" else None
        if result is None:
            raise SystemExit(f"{store / draw.run} is {state}: give the command again to finish the search")
        contents.append(result.content)
    accuracy = statistics.fmean(content["validation_accuracy"] for content in contents)
    return accuracy, min(map(validation_pictures, contents))
