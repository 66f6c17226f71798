"""What the runs say: means and standard errors over seeds, by data set, method and held-out domain.

A method is an algorithm with its settings: runs that differ in anything but their seed are never averaged. Where
hyper-parameters were searched, a method is an algorithm with its search: one chosen run for each held-out domain and
seed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from steppe.report.runs import Run, Runs
from steppe.report.settings import SEARCH, SELECTION, differing, labels, settings_key, settings_of, shared_settings

BASELINE = "erm"
KNOWN_ORDER = ("erm", "sam", "asam", "gsam", "sagm", "disam")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its standard error, and the ids of the runs it comes from.

    ``error`` is s/√n with s the standard deviation of the sample (n − 1 in the denominator); with one seed there is
    no spread to estimate and it is None.
    """

    mean: float
    error: float | None
    n: int
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One method on one held-out domain. Accuracies are fractions in [0, 1]."""

    held_out: Estimate
    everything: Estimate
    in_domain: Estimate
    runs: tuple[Run, ...] = field(repr=False)


@dataclass(frozen=True)
class Method:
    """An algorithm with its settings: a row of the table.

    ``average``, ``average_everything`` and ``average_in_domain`` are means over the held-out domains; None while
    runs on some held-out domain are missing. ``seconds_per_step`` is the median over runs; ``times_baseline`` its
    ratio to plain training (erm) with the same settings on the same hardware, where there is such a row.
    """

    name: str
    algorithm: str
    settings: Mapping[str, Any] = field(repr=False)
    cells: Mapping[str, Cell]
    average: Estimate | None
    average_everything: Estimate | None
    average_in_domain: Estimate | None
    seconds_per_step: float
    times_baseline: float | None
    runs: tuple[Run, ...] = field(repr=False)

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(run.id for run in self.runs)

    @property
    def seeds(self) -> str:
        """How many seeds: ``3``, or ``1–3`` where the held-out domains have different numbers."""
        counts = sorted({cell.held_out.n for cell in self.cells.values()})
        return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


@dataclass(frozen=True)
class Comparison:
    """All methods on one data set (the same pictures, divided by the same protocol)."""

    name: str
    dataset: str
    spec: str
    fingerprint: str
    answer: str
    in_domain: str
    domains: tuple[str, ...]
    held_out: tuple[str, ...]
    methods: tuple[Method, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for method in self.methods for run in method.runs)

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """Data set, contents, split and answer: of two comparisons equal exactly where the pictures are."""
        return self.dataset, self.fingerprint, str(self.runs[0].config.get("split", "")), self.answer

    @property
    def selects_on_in_domain(self) -> bool:
        """Whether the in-domain pictures are those that selected the checkpoint: so it is in DomainBed's split."""
        return self.in_domain == "out"

    def pictures(self, domain: str) -> str:
        """On how many pictures the held-out number of ``domain`` rests: ``97``, ``95–97``; empty where unknown."""
        counts = {run.result["counts"].get(domain, {}).get(self.answer) for run in self.runs if run.held_out == domain}
        known = sorted(count for count in counts if isinstance(count, int))
        if not known:
            return ""
        return str(known[0]) if known[0] == known[-1] else f"{known[0]}–{known[-1]}"


@dataclass(frozen=True)
class Summary:
    """Every comparison that a store of runs supports, and what else lies in the store."""

    comparisons: tuple[Comparison, ...]
    runs: Runs = field(repr=False)


def estimate(values: Sequence[float], runs: Iterable[str]) -> Estimate:
    """Mean and standard error of ``values``, one per seed.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("nothing to average")
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else None
    return Estimate(float(array.mean()), error, int(array.size), tuple(runs))


def summarise(runs: Sequence[Run]) -> Summary:
    """The runs, grouped by data set × method × held-out domain; see the classes for what is computed."""
    grouped: dict[tuple[str, str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.validation_domain is not None:
            continue  # it serves the choice of hyper-parameters, and its held-out domain is one of two
        identity = (
            run.dataset,
            str(run.config.get("dataset_fingerprint", "")),
            str(run.config.get("split", "")),
        )
        grouped[(*identity, str(run.result["answer"]))].append(run)
    comparisons = [
        _comparison(members, _comparison_name(identity, list(grouped)))
        for identity, members in sorted(grouped.items(), key=lambda item: (item[0][0], -len(item[1]), item[0]))
    ]
    store = runs if isinstance(runs, Runs) else Runs(runs)
    return Summary(tuple(comparisons), store)


def repetitions(method: Method, value: Callable[[Run], float]) -> dict[tuple[Any, ...], float] | None:
    """Seed -> mean of ``value`` over the held-out domains; None unless all domains have the same seeds, once each."""
    by_domain = [{run.repetition: value(run) for run in cell.runs} for cell in method.cells.values()]
    seeds = set(by_domain[0])
    if any(set(domain) != seeds for domain in by_domain):
        return None
    if any(len(domain) != len(cell.runs) for domain, cell in zip(by_domain, method.cells.values(), strict=True)):
        return None
    return {seed: float(np.mean([domain[seed] for domain in by_domain])) for seed in by_domain[0]}


def _comparison_name(identity: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    """The data set's name, with what tells it from others of that name: contents, protocol."""
    dataset, fingerprint, split, answer = identity
    same = [other for other in others if other[0] == dataset]
    notes = []
    if len({other[1] for other in same}) > 1:
        notes.append(f"contents {fingerprint or 'unknown'}")
    if len({other[2:] for other in same}) > 1:
        notes.append(f"split {split or answer}")
    return f"{dataset} ({', '.join(notes)})" if notes else dataset


def _comparison(runs: Sequence[Run], name: str) -> Comparison:
    domains = list(dict.fromkeys(domain for run in runs for domain in run.domains))
    present = {run.held_out for run in runs}
    held_out = tuple(domain for domain in domains if domain in present)
    by_algorithm: dict[str, dict[Any, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_algorithm[run.algorithm][run.searched or settings_key(settings_of(run.config))].append(run)
    methods = []
    for algorithm in sorted(by_algorithm, key=algorithm_order):
        groups = sorted(by_algorithm[algorithm].values(), key=lambda group: _natural(_settings(group)))
        given, searched = (
            differing([_settings(group) for group in groups if bool(group[0].searched) is kind])
            for kind in (False, True)
        )
        named = []
        for group in groups:
            names = given
            if group[0].searched:
                how = [SEARCH if group[0].searched.search else SELECTION] if len(groups) > 1 else []
                names = [*how, *(name for name in searched if name not in how)]
            named.append((_settings(group), names))
        titles = labels(algorithm, named)
        methods += [_method(title, group, held_out) for title, group in zip(titles, groups, strict=True)]
    baselines = {settings_key(shared_settings(m.settings)): m for m in methods if m.algorithm == BASELINE}
    first = runs[0]
    return Comparison(
        name=name,
        dataset=first.dataset,
        spec=str(first.result.get("dataset_spec", first.dataset)),
        fingerprint=str(first.config.get("dataset_fingerprint", "")),
        answer=str(first.result["answer"]),
        in_domain=str(first.result["in_domain"]),
        domains=tuple(domains),
        held_out=held_out,
        methods=tuple(_with_ratio(method, baselines) for method in methods),
    )


def _settings(group: Sequence[Run]) -> dict[str, Any]:
    """What all runs of a method have in common: everything, or what was not searched, and how the rest was."""
    settings, searched = settings_of(group[0].config), group[0].searched
    if searched is None:
        return settings
    how = {SEARCH: searched.search, SELECTION: searched.selection}
    own = {name: value for name, value in settings.items() if name not in searched.drawn}
    return own | {name: value for name, value in how.items() if value}


def _method(name: str, runs: Sequence[Run], held_out: Sequence[str]) -> Method:
    cells = {}
    for domain in held_out:
        members = sorted((run for run in runs if run.held_out == domain), key=lambda run: run.seed)
        if members:
            ids = [run.id for run in members]
            cells[domain] = Cell(
                held_out=estimate([run.held_out_accuracy for run in members], ids),
                everything=estimate([run.held_out_accuracy_all for run in members], ids),
                in_domain=estimate([run.in_domain_accuracy for run in members], ids),
                runs=tuple(members),
            )
    bare = Method(
        name=name,
        algorithm=runs[0].algorithm,
        settings=_settings(runs),
        cells=cells,
        average=None,
        average_everything=None,
        average_in_domain=None,
        seconds_per_step=float(median(run.seconds_per_step for run in runs)),
        times_baseline=None,
        runs=tuple(run for cell in cells.values() for run in cell.runs),
    )
    if len(cells) < len(held_out):
        return bare
    return replace(
        bare,
        average=_average(bare, lambda run: run.held_out_accuracy),
        average_everything=_average(bare, lambda run: run.held_out_accuracy_all),
        average_in_domain=_average(bare, lambda run: run.in_domain_accuracy),
    )


def _average(method: Method, value: Callable[[Run], float]) -> Estimate:
    """Mean over the held-out domains.

    Its standard error is that of the seeds' own averages: the domains of one seed are not independent (they share
    the division of the pictures). Where the domains have different seeds, no error is given.
    """
    by_seed = repetitions(method, value)
    if by_seed is not None:
        return estimate(list(by_seed.values()), method.run_ids)
    means = [float(np.mean([value(run) for run in cell.runs])) for cell in method.cells.values()]
    return Estimate(float(np.mean(means)), None, min(len(cell.runs) for cell in method.cells.values()), method.run_ids)


def _with_ratio(method: Method, baselines: Mapping[str, Method]) -> Method:
    """The method with its cost as a multiple of the baseline's, where that was trained alike on the same hardware.

    Args:
        method: any.
        baselines: shared settings (`settings_key`) -> plain training with them.
    """
    if SEARCH in method.settings or SELECTION in method.settings:
        return method  # its runs differ in the size of their steps
    hardware = {run.hardware for run in method.runs}
    other = baselines.get(settings_key(shared_settings(method.settings)))
    if other is None or len(hardware) > 1 or {run.hardware for run in other.runs} != hardware:
        return method
    if not other.seconds_per_step > 0:
        return method
    return replace(method, times_baseline=method.seconds_per_step / other.seconds_per_step)


def algorithm_order(algorithm: str) -> tuple[int, str]:
    """Plain training first, then the well-known methods in the order of their publication, then by name."""
    known = KNOWN_ORDER.index(algorithm) if algorithm in KNOWN_ORDER else len(KNOWN_ORDER)
    return known, algorithm


def _natural(settings: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """A key that sorts settings by value: numbers as numbers, everything else as text."""
    return [
        (name, float(value), "") if isinstance(value, (int, float)) else (name, math.inf, str(value))
        for name, value in sorted(settings.items())
    ]
