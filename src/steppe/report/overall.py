"""Over data sets: the table whose rows are methods and whose columns are data sets, and average ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steppe.report.statistics import Comparison, Estimate, algorithm_order


@dataclass(frozen=True)
class Row:
    """A method over all data sets.

    Attributes:
        name: as in the data sets' own tables, which are joined by it.
        averages: data set -> mean over its held-out domains; without those where a domain is missing.
        mean: over the data sets, each of which weighs the same; None while one is missing. Its standard error is
            √(Σ eᵢ²)/D with eᵢ those of the D averages: data sets are independent of each other.
        rank: mean of the method's ranks over the cells that every ranked method has; None where it lacks one.
    """

    name: str
    averages: Mapping[str, Estimate]
    mean: Estimate | None
    rank: float | None


@dataclass(frozen=True)
class Overall:
    """The summary over data sets.

    Attributes:
        datasets: names of the comparisons, in the order of the columns.
        rows: the methods, in the order of their algorithms.
        cells: how many (data set, held-out domain) pairs the ranks rest on.
        ranked: how many methods share them.
    """

    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    cells: int
    ranked: int


def overall(comparisons: Sequence[Comparison]) -> Overall:
    """DomainBed's last table (Gulrajani and Lopez-Paz 2021, table 4): per data set the mean over held-out domains, each
    seed's taken first, with its standard error over seeds; then the mean over data sets."""
    known = {method.name: method.algorithm for comparison in comparisons for method in comparison.methods}
    names = sorted(known, key=lambda name: algorithm_order(known[name]))
    ranks, cells = average_ranks(comparisons)
    rows = []
    for name in names:
        averages = {
            comparison.name: method.average
            for comparison in comparisons
            for method in comparison.methods
            if method.name == name and method.average is not None
        }
        mean = _mean(list(averages.values())) if len(averages) == len(comparisons) else None
        rows.append(Row(name, averages, mean, ranks.get(name)))
    return Overall(tuple(comparison.name for comparison in comparisons), tuple(rows), cells, len(ranks))


def average_ranks(comparisons: Sequence[Comparison]) -> tuple[dict[str, float], int]:
    """Method -> mean of its ranks over the cells (data set × held-out domain), and the number of cells.

    In a cell the method with the highest mean accuracy over its seeds has rank 1; equal ones share the mean of their
    ranks. Only methods that have every cell are ranked: a rank among others than elsewhere is not comparable.
    """
    from scipy import stats  # takes seconds, and a command that only trains needs none of it

    accuracies: dict[str, dict[tuple[str, str], float]] = {}
    cells: dict[tuple[str, str], None] = {}
    for comparison in comparisons:
        for domain in comparison.held_out:
            cells[comparison.name, domain] = None
        for method in comparison.methods:
            for domain, cell in method.cells.items():
                accuracies.setdefault(method.name, {})[comparison.name, domain] = cell.held_out.mean
    complete = [name for name, found in accuracies.items() if len(found) == len(cells)]
    if not complete:
        return {}, len(cells)
    table = np.array([[accuracies[name][cell] for cell in cells] for name in complete])
    ranks = stats.rankdata(-table.round(12), axis=0).mean(axis=1)
    return {name: float(rank) for name, rank in zip(complete, ranks, strict=True)}, len(cells)


def _mean(averages: Sequence[Estimate]) -> Estimate:
    errors = [average.error for average in averages]
    known = [error for error in errors if error is not None]
    error = math.sqrt(sum(value**2 for value in known)) / len(averages) if len(known) == len(averages) else None
    return Estimate(
        mean=float(np.mean([average.mean for average in averages])),
        error=error,
        n=min(average.n for average in averages),
        runs=tuple(run for average in averages for run in average.runs),
    )
