"""Tests between methods: paired over what both were run on, corrected for how many are made.

What is paired decides what a test speaks of. By default a pair is a *cell*: a data set and a held-out domain, with the
means of both methods over the seeds that they share there. Seeds of one cell are repetitions on the same pictures, not
further data sets: pairing single *runs* gives more pairs and smaller p-values, but a difference it finds is one for
these cells, with other seeds, and not for cells that nobody has tried (Demšar 2006, section 3.1.3). Even the cells of
one data set share their pictures, so that a p-value from one data set says less than it seems to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steppe.errors import unknown_name
from steppe.report.statistics import Comparison

Unit = Literal["cells", "runs"]
Cell = tuple[str, str]
"""Name of the comparison (the data set), and the held-out domain."""
Outcomes = Mapping[Cell, Mapping[tuple[Any, ...], float]]
"""Cell -> repetition (its seeds) -> accuracy, a fraction."""

LEVEL = 0.05
EQUAL = 12
"""Differences of accuracies are compared to so many decimals: 0.3 − 0.2 and 0.5 − 0.4 tie."""
ALL_PAIRS_UP_TO = 12
"""With more methods than this each is tested against one: all pairs would leave nothing of any after correction."""


@dataclass(frozen=True)
class PValue:
    """A two-sided p-value, and what Holm's correction makes of it; None where no test can be made."""

    p: float | None
    holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected value is at most `LEVEL`."""
        return self.holm is not None and self.holm <= LEVEL


@dataclass(frozen=True)
class Pair:
    """Two methods, over what both were run on.

    Attributes:
        first: name of the one.
        second: name of the other.
        n: how many pairs.
        zeros: how many of them have no difference; the signed ranks leave them out.
        difference: mean of (first − second), a fraction.
        low: lower end of its 95 % interval (Student's t with n − 1 degrees of freedom); None without a spread.
        high: upper end.
        t: the paired t-test, that the mean difference is zero. Needs differences that are about normal.
        wilcoxon: the signed-rank test, that differences are symmetric about zero. Exact, with ties up to 13 pairs that
            differ; beyond, where there are ties or more than 50, by its normal approximation.
    """

    first: str
    second: str
    n: int
    zeros: int
    difference: float
    low: float | None
    high: float | None
    t: PValue
    wilcoxon: PValue

    @property
    def smallest_p(self) -> float:
        """2^(1 − m), m pairs that differ: what the signed-rank test gives if all have the same sign."""
        return min(1.0, 2.0 ** (1 - (self.n - self.zeros)))


@dataclass(frozen=True)
class Family:
    """The tests of one family, among which Holm's correction counts.

    Attributes:
        unit: what is paired.
        methods: their names.
        against: the one method that every other is tested against; None where all pairs are tested.
        pairs: the pairs of methods that share something.
    """

    unit: Unit
    methods: tuple[str, ...]
    against: str | None
    pairs: tuple[Pair, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What has to be said with the numbers, a sentence each."""
        if not self.pairs:
            return ()
        most = max(pair.n - pair.zeros for pair in self.pairs)
        said = []
        if 2.0 ** (1 - most) > LEVEL:
            said.append(
                f"With {_count(most, 'pair')} that differ no signed-rank test can reach {LEVEL:g}: the smallest p that "
                f"{most} can give is {2.0 ** (1 - most):.3g}. It takes 6."
                if most
                else "No pair differs, so there is nothing to test."
            )
        elif len(self.pairs) * 2.0 ** (1 - most) > LEVEL:
            said.append(
                f"Corrected for {_count(len(self.pairs), 'test')}, no single signed-rank test of {most} pairs can "
                f"reach {LEVEL:g}."
            )
        what = (
            "A pair is a held-out domain of a data set (means over the seeds both methods have)."
            if self.unit == "cells"
            else "A pair is a run: same data set, held-out domain and seed. Seeds repeat one experiment on the same "
            "pictures, so these p-values speak of other seeds on these domains, not of other domains."
        )
        return (what, *said)


def outcomes(comparisons: Sequence[Comparison]) -> dict[str, dict[Cell, dict[tuple[Any, ...], float]]]:
    """Method -> cell -> repetition -> held-out accuracy. Methods of several data sets are joined by their names."""
    found: dict[str, dict[Cell, dict[tuple[Any, ...], float]]] = {}
    for comparison in comparisons:
        for method in comparison.methods:
            cells = found.setdefault(method.name, {})
            for domain, cell in method.cells.items():
                cells[comparison.name, domain] = {run.repetition: run.held_out_accuracy for run in cell.runs}
    return found


def family(
    comparisons: Sequence[Comparison],
    *,
    unit: Unit = "cells",
    methods: Sequence[str] | None = None,
    against: str | None = None,
) -> Family:
    """Paired t and Wilcoxon signed-rank between methods, with Holm's correction over all tests of a kind.

    Args:
        comparisons: the data sets that are taken together; one, or all of a store.
        unit: what is paired; see the module.
        methods: their names; all by default.
        against: test every other method against this one. By default all pairs are tested, but with more than
            `ALL_PAIRS_UP_TO` methods the first one (plain training, where it was run) is what others are held against.

    Raises:
        SteppeError: a method is not there.
    """
    known = outcomes(comparisons)
    names = tuple(known) if methods is None else tuple(methods)
    for name in (*names, *([against] if against is not None else [])):
        if name not in known:
            raise unknown_name("method", name, known)
    if against is None and len(names) > ALL_PAIRS_UP_TO:
        against = names[0]
    wanted = list(combinations(names, 2)) if against is None else [(name, against) for name in names if name != against]
    made = [compare(first, second, known[first], known[second], unit) for first, second in wanted]
    found = [pair for pair in made if pair is not None]
    t = holm([pair.t.p for pair in found])
    signed = holm([pair.wilcoxon.p for pair in found])
    return Family(
        unit=unit,
        methods=names,
        against=against,
        pairs=tuple(
            replace(pair, t=replace(pair.t, holm=one), wilcoxon=replace(pair.wilcoxon, holm=other))
            for pair, one, other in zip(found, t, signed, strict=True)
        ),
    )


def compare(first: str, second: str, ours: Outcomes, theirs: Outcomes, unit: Unit) -> Pair | None:
    """The two methods over what both were run on, without correction; None where that is nothing."""
    differences = []
    for cell in (cell for cell in ours if cell in theirs):
        shared = [seed for seed in ours[cell] if seed in theirs[cell]]
        within = [ours[cell][seed] - theirs[cell][seed] for seed in shared]
        differences += within if unit == "runs" else ([float(np.mean(within))] if within else [])
    if not differences:
        return None
    d: NDArray[np.float64] = np.asarray(differences, dtype=np.float64).round(EQUAL)
    low, high, t = paired_t(d)
    return Pair(
        first=first,
        second=second,
        n=int(d.size),
        zeros=int((d == 0).sum()),
        difference=float(d.mean()),
        low=low,
        high=high,
        t=PValue(t),
        wilcoxon=PValue(signed_rank(d)),
    )


def paired_t(d: NDArray[np.float64]) -> tuple[float | None, float | None, float | None]:
    """The 95 % interval of the mean of ``d``, and the p-value of the t-test that it is zero; None without a spread."""
    from scipy import stats  # takes seconds, and a command that only trains needs none of it

    if d.size < 2 or np.ptp(d) == 0:
        return None, None, None
    test = stats.ttest_1samp(d, 0.0)
    interval = test.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(test.pvalue)


def signed_rank(d: NDArray[np.float64]) -> float | None:
    """The p-value of Wilcoxon's signed-rank test of ``d``, zeros left out; 1 where nothing else is there."""
    from scipy import stats  # takes seconds, and a command that only trains needs none of it

    if not d.size:
        return None
    rest = d[d != 0]
    return float(stats.wilcoxon(rest, method="auto").pvalue) if rest.size else 1.0


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p-values: p₍ᵢ₎ ↦ max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎), p₍₁₎ ≤ … ≤ p₍ₘ₎.

    Rejecting where the adjusted value is at most α keeps the chance of any false rejection below α, whatever the
    dependence of the tests. A test that could not be made (None) is none, and does not count in m.
    """
    made = [place for place, value in enumerate(p) if value is not None and math.isfinite(value)]
    order = sorted(made, key=lambda place: p[place] or 0.0)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (p[place] or 0.0)))
        adjusted[place] = largest
    return adjusted


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
