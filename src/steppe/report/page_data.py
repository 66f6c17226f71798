"""What the page shows, as plain data: for its charts, for its tests, and for anyone who wants the numbers again."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steppe.look.palette import Ink, inks
from steppe.report.curves import Curve, curves
from steppe.report.published import Published, published
from steppe.report.ranking import Answer, answer
from steppe.report.runs import Problem, Run
from steppe.report.samples import Gallery, gallery
from steppe.report.sensitivity import Line, Sensitivity, sensitivities
from steppe.report.settings import HYPER, differing, plain, shared_settings, short, switched_off
from steppe.report.sharpness import SharpnessCurve, sharpness_curves
from steppe.report.significance import Family, Unit, family
from steppe.report.statistics import BASELINE, Comparison, Estimate, Method, Summary

VERSION = 2
FIRST = 12
"""With more methods than this a page shows these many at first: charts of more cannot be read."""
MOST_FILES = 400
"""Files of metrics that are read for the curves of a data set."""


@dataclass(frozen=True)
class Extras:
    """What a page is asked to show beyond what every page shows.

    Attributes:
        published: published figures beside one's own.
        unit: what a test between two methods pairs.
        baseline: the method that every other is tested against; None for all pairs.
        against: other runs, to be compared with.
        drawn: all runs of a store whose tables are about selected ones: what shows how hyper-parameters matter.
    """

    published: bool = False
    unit: Unit = "cells"
    baseline: str | None = None
    against: Summary | None = None
    drawn: Summary | None = None


@dataclass(frozen=True)
class View:
    """Everything the page says about one comparison.

    ``first`` has the names of the methods that a page of very many shows at first; the curves are of these, and of so
    many runs of a cell as ``seeds`` says (None: of all).
    """

    comparison: Comparison
    answer: Answer
    inks: Mapping[str, Ink]
    first: Sequence[str]
    seeds: int | None
    curves: Sequence[Curve]
    problems: Sequence[Problem]
    sharpness: Sequence[SharpnessCurve]
    sensitivities: Sequence[Sensitivity]
    tests: Family | None
    published: Published | None
    shown: Method
    gallery: Gallery


@dataclass(frozen=True)
class Origin:
    """Runs that share a command, or a machine: what they share, and how many they are."""

    text: str
    runs: int


def view(comparison: Comparison, extras: Extras | None = None, files: int = MOST_FILES) -> View:
    """Reads the metrics, the predictions and the pictures that the comparison's part of the page needs.

    Args:
        comparison: the runs.
        extras: what is asked for beyond the usual.
        files: read at most about so many files of metrics.
    """
    extras = extras or Extras()
    result = answer(comparison)
    first = _first(comparison, result)
    cells = sum(len(method.cells) for method in comparison.methods if method.name in first)
    most = max((len(cell.runs) for method in comparison.methods for cell in method.cells.values()), default=0)
    seeds = max(1, files // max(1, cells))
    limit = None if seeds >= most else seeds
    lines, problems = curves(comparison, methods=first, seeds=limit)
    shown = result.best[0] if result.best else max(comparison.methods, key=lambda method: len(method.cells))
    baseline = extras.baseline if any(method.name == extras.baseline for method in comparison.methods) else None
    tests = family([comparison], unit=extras.unit, against=baseline)
    return View(
        comparison=comparison,
        answer=result,
        inks=inks([method.name for method in comparison.methods]),
        first=first,
        seeds=limit,
        curves=lines,
        problems=problems,
        sharpness=sharpness_curves(comparison, methods=first, seeds=limit),
        sensitivities=sensitivities(_drawn(comparison, extras.drawn)),
        tests=tests if tests.pairs else None,
        published=published(comparison) if extras.published else None,
        shown=shown,
        gallery=gallery(comparison, shown),
    )


def _drawn(comparison: Comparison, everything: Summary | None) -> Comparison:
    """The same pictures with all runs, where the comparison is about selected ones."""
    for other in everything.comparisons if everything is not None else ():
        if other.identity == comparison.identity:
            return other
    return comparison


def _first(comparison: Comparison, result: Answer) -> list[str]:
    """All methods, or of very many the best and plain training."""
    if len(comparison.methods) <= FIRST:
        return [method.name for method in comparison.methods]
    plain_training = [method.name for method in comparison.methods if method.algorithm == BASELINE][:1]
    ranked = [method.name for method in (*result.ranking, *result.unranked)]
    chosen = set(list(dict.fromkeys([*plain_training, *ranked]))[:FIRST])
    return [method.name for method in comparison.methods if method.name in chosen]


def page_data(views: Sequence[View], root: Path) -> dict[str, Any]:
    """The numbers of the page: plain JSON. Accuracies are fractions in [0, 1], times are seconds."""
    return {
        "version": VERSION,
        "comparisons": [_comparison(item) for item in views],
        "runs": {
            run.id: {
                "path": run_path(run, root),
                "algorithm": run.algorithm,
                "held_out": run.held_out,
                "seed": run.seed,
                "repetition": "/".join(map(str, run.repetition)),
                "selected_step": run.result["selected_step"],
                "selected": chosen_step(run),
                "validation_accuracy": run.result["validation_accuracy"],
                "held_out_accuracy": run.held_out_accuracy,
                "held_out_accuracy_all": run.held_out_accuracy_all,
                "in_domain_accuracy": run.in_domain_accuracy,
                "seconds_per_step": run.seconds_per_step,
            }
            for item in views
            for run in item.comparison.runs
        },
    }


def run_path(run: Run, root: Path) -> str:
    """The run's folder as seen from the store's root, with forward slashes."""
    return Path(os.path.relpath(run.path, root)).as_posix()


def commands(runs: Iterable[Run]) -> list[Origin]:
    """The commands that made the runs, the most frequent first."""
    return _counted(str(run.result.get("command", "not recorded")) for run in runs)


def machines(runs: Iterable[Run]) -> list[Origin]:
    """Versions, device and threads, one entry for each combination."""
    return _counted(_machine(run) for run in runs)


def settings_table(comparison: Comparison) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What all methods were trained with, and for each method what is its own (its hyper-parameters, what differs)."""
    all_settings = {method.name: method.settings for method in comparison.methods}
    different = set(differing([shared_settings(settings) for settings in all_settings.values()]))
    first = shared_settings(comparison.methods[0].settings)
    common = {name: plain(value) for name, value in first.items() if name not in different}
    own = {
        method: {
            short(name, settings): plain(value)
            for name, value in settings.items()
            if name in different or (name.startswith(f"{HYPER}.") and not switched_off(name, value))
        }
        for method, settings in all_settings.items()
    }
    return common, own


def finished(runs: Iterable[Run]) -> str:
    """When the runs were finished, in UTC: ``2026-11-20 10:00``, or from the first to the last."""
    moments = []
    for run in runs:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            moments.append(datetime.fromisoformat(run.result["finished"]).astimezone(UTC))
    shown = list(dict.fromkeys(f"{moment:%Y-%m-%d %H:%M}" for moment in sorted(moments)))
    return " to ".join(shown if len(shown) < 2 else [shown[0], shown[-1]])


def _comparison(item: View) -> dict[str, Any]:
    comparison = item.comparison
    algorithms = list(dict.fromkeys(method.algorithm for method in comparison.methods))
    return {
        "name": comparison.name,
        "domains": list(comparison.domains),
        "held_out": list(comparison.held_out),
        "best": [method.name for method in item.answer.best],
        "ranking": [method.name for method in item.answer.ranking],
        "methods": [_method(method, item.inks[method.name]) for method in comparison.methods],
        "first": list(item.first),
        "curves": [_rounded(asdict(curve)) for curve in item.curves],
        "sharpness": [_rounded(asdict(curve)) for curve in item.sharpness],
        "sensitivities": [_sensitivity(each, inks(algorithms)) for each in item.sensitivities],
    }


def _method(method: Method, ink: Ink) -> dict[str, Any]:
    return {
        "name": method.name,
        "algorithm": method.algorithm,
        "settings": dict(method.settings),
        "ink": asdict(ink),
        "cells": {
            domain: {
                "held_out": asdict(cell.held_out),
                "everything": _estimate(cell.everything),
                "in_domain": _estimate(cell.in_domain),
            }
            for domain, cell in method.cells.items()
        },
        "average": _estimate(method.average),
        "average_everything": _estimate(method.average_everything),
        "average_in_domain": _estimate(method.average_in_domain),
        "seconds_per_step": method.seconds_per_step,
        "times_baseline": method.times_baseline,
        "runs": list(method.run_ids),
    }


def _estimate(value: Estimate | None) -> dict[str, Any] | None:
    """Without the runs, where these are named beside it: a page of thousands would name each ten times."""
    return None if value is None else {"mean": value.mean, "error": value.error, "n": value.n}


def _sensitivity(item: Sensitivity, chosen: Mapping[str, Ink]) -> dict[str, Any]:
    def line(each: Line) -> dict[str, Any]:
        return {
            "algorithm": each.algorithm,
            "fixed": each.fixed,
            "ink": asdict(chosen[each.algorithm]),
            "points": [
                {
                    "value": point.value,
                    "method": point.method,
                    "held_out": {domain: _estimate(value) for domain, value in point.held_out.items()},
                    "average": _estimate(point.average),
                }
                for point in each.points
            ],
        }

    return {
        "parameter": item.parameter,
        "logarithmic": item.logarithmic,
        "lines": [line(each) for each in item.lines],
        "single": [line(each) for each in item.single],
    }


def _rounded(curve: dict[str, Any]) -> dict[str, Any]:
    """The curve with seven significant digits, which is more than a chart can show."""
    return {
        name: [float(f"{number:.7g}") for number in value] if name in ("loss", "scaled", "values") else value
        for name, value in curve.items()
    }


def chosen_step(run: Run) -> str:
    """The selected step, or the first and the last of those whose weights are averaged."""
    average = run.result.get("average")
    start = f"{average['start']}–" if isinstance(average, Mapping) and "start" in average else ""
    return f"{start}{run.result['selected_step']}"


def _machine(run: Run) -> str:
    versions = run.result.get("versions")
    named = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, Mapping) else []
    device, threads = run.hardware
    return " · ".join([*named, f"device {device}", f"threads {threads}"])


def _counted(texts: Iterable[str]) -> list[Origin]:
    return [Origin(text, count) for text, count in Counter(texts).most_common()]
