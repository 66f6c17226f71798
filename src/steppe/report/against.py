"""Two stores, or two sweeps of one store, against each other: where they tried the same, what came out differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steppe.report.settings import settings_key
from steppe.report.significance import LEVEL, Outcomes, Pair, PValue, compare, holm, outcomes
from steppe.report.statistics import Comparison, Estimate, Method, Summary, estimate
from steppe.report.tables import Entry, Row, Table


@dataclass(frozen=True)
class Difference:
    """A method on one held-out domain in both: ours minus theirs, over the seeds that both have.

    ``change`` is the mean difference with its standard error over those seeds; ``p`` that of the paired t-test, and
    ``holm`` corrected for all cells; None where one seed, or no spread, gives nothing to judge by. ``equal`` says that
    every seed came out the same to the last digit.
    """

    dataset: str
    method: str
    held_out: str
    ours: float
    theirs: float
    change: Estimate
    p: float | None
    holm: float | None
    equal: bool


@dataclass(frozen=True)
class Against:
    """What two sets of runs say about each other.

    Attributes:
        differences: every cell (data set, method, held-out domain) that both have, with seeds in common.
        methods: method -> its cells taken together, tested as :mod:`~steppe.report.significance` does over cells.
        changed: settings that differ between the two where a method was matched by name: name -> the two values.
        ours_alone: methods that only the first has, with their data set; ``theirs_alone`` the second.
        remarks: what else has to be said.
    """

    differences: tuple[Difference, ...]
    methods: tuple[Pair, ...]
    changed: Mapping[str, tuple[str, str]]
    ours_alone: tuple[str, ...]
    theirs_alone: tuple[str, ...]
    remarks: tuple[str, ...]


def against(ours: Summary, theirs: Summary) -> Against:
    """Compare method by method: the one of equal settings, else the one of the same name where that is clear.

    Data sets are the same where their contents, their split and the pictures that answer are.
    """
    matched: list[tuple[Comparison, Method, Method]] = []
    alone: tuple[list[str], list[str]] = ([], [])
    other = {comparison.identity: comparison for comparison in theirs.comparisons}
    seen = set()
    for comparison in ours.comparisons:
        partner = other.get(comparison.identity)
        seen.add(comparison.identity)
        partners = _partners(comparison.methods, partner.methods if partner else ())
        matched += [
            (comparison, method, partners[place])
            for place, method in enumerate(comparison.methods)
            if place in partners
        ]
        alone[0].extend(
            f"{method.name} on {comparison.name}"
            for place, method in enumerate(comparison.methods)
            if place not in partners
        )
        taken = {id(method) for method in partners.values()}
        alone[1].extend(
            f"{method.name} on {comparison.name}"
            for method in (partner.methods if partner else ())
            if id(method) not in taken
        )
    for identity, comparison in other.items():
        if identity not in seen:
            alone[1].extend(f"{method.name} on {comparison.name}" for method in comparison.methods)
    differences = _corrected([item for match in matched for item in _differences(*match)])
    pairs = _over_cells(matched)
    return Against(differences, pairs, _changed(matched), tuple(alone[0]), tuple(alone[1]), _remarks(differences))


def against_table(found: Against, names: tuple[str, str] = ("these", "those")) -> Table:
    """A line for each method, data set and held-out domain that both have."""
    rows = tuple(
        Row(
            f"{item.method}, {item.dataset}",
            (
                Entry(text=item.held_out),
                Entry(text=f"{100 * item.ours:.1f}"),
                Entry(text=f"{100 * item.theirs:.1f}"),
                Entry(text="equal" if item.equal else _spread(item.change)),
                Entry(text=str(item.change.n)),
                Entry(text="" if item.holm is None else f"{item.holm:.3f}", place=int((item.holm or 1.0) <= LEVEL)),
            ),
        )
        for item in found.differences
    )
    notes = list(found.remarks)
    for pair in found.methods:
        p = "" if pair.wilcoxon.holm is None else f"; signed-rank over cells p = {pair.wilcoxon.holm:.3f}"
        notes.append(f"{pair.first}: {_signed(pair.difference)} points on average over {pair.n} held-out domains{p}.")
    if found.changed:
        told = ", ".join(f"{name} ({ours} and {theirs})" for name, (ours, theirs) in found.changed.items())
        notes.append(f"The settings of the two differ: {told}.")
    for whose, listed in zip(names, (found.ours_alone, found.theirs_alone), strict=True):
        if listed:
            notes.append(f"Only in {whose}: {', '.join(listed)}.")
    return Table(
        caption=f"Held-out accuracy in %, {names[0]} and {names[1]}; differences in points over shared seeds.",
        key="against",
        heading="Algorithm, data set",
        columns=("held out", names[0], names[1], "difference", "seeds", "paired t, Holm"),
        rows=rows,
        notes=tuple(notes),
    )


def _partners(ours: Sequence[Method], theirs: Sequence[Method]) -> dict[int, Method]:
    """Place among ours -> its partner: first those of equal settings, then of equal names, then the lone ones of an
    algorithm on both sides."""
    found: dict[int, Method] = {}
    left = list(theirs)

    def take(place: int, other: Method) -> None:
        found[place] = other
        left[:] = [method for method in left if method is not other]

    for same in (_equal, lambda one, other: one.name == other.name):
        for place, method in enumerate(ours):
            partner = next((other for other in left if same(method, other)), None)
            if place not in found and partner is not None:
                take(place, partner)
    for algorithm in dict.fromkeys(method.algorithm for method in ours):
        mine = [place for place, method in enumerate(ours) if method.algorithm == algorithm]
        others = [method for method in theirs if method.algorithm == algorithm]
        if len(mine) == len(others) == 1 and mine[0] not in found:
            take(mine[0], others[0])
    return found


def _equal(one: Method, other: Method) -> bool:
    return one.algorithm == other.algorithm and settings_key(one.settings) == settings_key(other.settings)


def _differences(comparison: Comparison, ours: Method, theirs: Method) -> list[Difference]:
    from scipy import stats  # takes seconds, and a command that only trains needs none of it

    found = []
    for domain, cell in ours.cells.items():
        if domain not in theirs.cells:
            continue
        first = {run.repetition: run.held_out_accuracy for run in cell.runs}
        second = {run.repetition: run.held_out_accuracy for run in theirs.cells[domain].runs}
        shared = [seed for seed in first if seed in second]
        if not shared:
            continue
        each = [first[seed] - second[seed] for seed in shared]
        ids = [run.id for run in cell.runs] + [run.id for run in theirs.cells[domain].runs]
        spread = len(each) > 1 and np.ptp(np.round(each, 12)) > 0
        found.append(
            Difference(
                dataset=comparison.name,
                method=ours.name,
                held_out=domain,
                ours=float(np.mean([first[seed] for seed in shared])),
                theirs=float(np.mean([second[seed] for seed in shared])),
                change=estimate(each, ids),
                p=float(stats.ttest_1samp(each, 0.0).pvalue) if spread else None,
                holm=None,
                equal=all(value == 0 for value in each),
            )
        )
    return found


def _corrected(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    adjusted = holm([item.p for item in differences])
    return tuple(Difference(**{**vars(item), "holm": value}) for item, value in zip(differences, adjusted, strict=True))


def _over_cells(matched: Sequence[tuple[Comparison, Method, Method]]) -> tuple[Pair, ...]:
    """Each method over all cells at once, the tests of all methods one family."""
    first: dict[str, dict[Any, Any]] = {}
    second: dict[str, dict[Any, Any]] = {}
    for comparison, ours, theirs in matched:
        for whose, method in ((first, ours), (second, theirs)):
            cells: Outcomes = outcomes([_only(comparison, method)])[method.name]
            whose.setdefault(ours.name, {}).update(cells)
    pairs = [compare(name, name, first[name], second[name], "cells") for name in first]
    found = [pair for pair in pairs if pair is not None]
    t, signed = (holm([getattr(pair, kind).p for pair in found]) for kind in ("t", "wilcoxon"))
    return tuple(
        replace(pair, t=PValue(pair.t.p, one), wilcoxon=PValue(pair.wilcoxon.p, other))
        for pair, one, other in zip(found, t, signed, strict=True)
    )


def _only(comparison: Comparison, method: Method) -> Comparison:
    return replace(comparison, methods=(method,))


def _changed(matched: Sequence[tuple[Comparison, Method, Method]]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for _, ours, theirs in matched:
        for name in dict.fromkeys([*ours.settings, *theirs.settings]):
            values = ours.settings.get(name), theirs.settings.get(name)
            if values[0] != values[1]:
                found.setdefault(name.removeprefix("hyper."), (str(values[0]), str(values[1])))
    return found


def _remarks(differences: Sequence[Difference]) -> tuple[str, ...]:
    if not differences:
        return ("The two have no data set, method, held-out domain and seed in common.",)
    equal = sum(item.equal for item in differences)
    if equal == len(differences):
        return ("Every shared run came out the same to the last digit.",)
    single = sum(item.change.n == 1 for item in differences)
    said = [f"{equal} of {len(differences)} cells came out the same to the last digit."] if equal else []
    if single:
        said.append(f"{single} of {len(differences)} cells share one seed only: no spread to judge by.")
    return tuple(said)


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")


def _spread(change: Estimate) -> str:
    return _signed(change.mean) if change.error is None else f"{_signed(change.mean)} ± {100 * change.error:.1f}"
