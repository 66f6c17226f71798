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
from steppe.report.ranking import Answer, answer
from steppe.report.runs import Problem, Run
from steppe.report.samples import Gallery, gallery
from steppe.report.settings import HYPER, differing, plain, shared_settings, short, switched_off
from steppe.report.statistics import Comparison, Estimate, Method

VERSION = 1


@dataclass(frozen=True)
class View:
    """Everything the page says about one comparison."""

    comparison: Comparison
    answer: Answer
    inks: Mapping[str, Ink]
    curves: Sequence[Curve]
    problems: Sequence[Problem]
    shown: Method
    gallery: Gallery


@dataclass(frozen=True)
class Origin:
    """Runs that share a command, or a machine: what they share, and how many they are."""

    text: str
    runs: int


def view(comparison: Comparison) -> View:
    """Reads the metrics, the predictions and the pictures that the comparison's part of the page needs."""
    result = answer(comparison)
    lines, problems = curves(comparison)
    shown = result.best[0] if result.best else max(comparison.methods, key=lambda method: len(method.cells))
    return View(
        comparison=comparison,
        answer=result,
        inks=inks([method.name for method in comparison.methods]),
        curves=lines,
        problems=problems,
        shown=shown,
        gallery=gallery(comparison, shown),
    )


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
                "selected_step": run.result["selected_step"],
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
    return {
        "name": comparison.name,
        "domains": list(comparison.domains),
        "held_out": list(comparison.held_out),
        "best": [method.name for method in item.answer.best],
        "ranking": [method.name for method in item.answer.ranking],
        "methods": [_method(method, item.inks[method.name]) for method in comparison.methods],
        "curves": [asdict(curve) for curve in item.curves],
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
                "everything": asdict(cell.everything),
                "in_domain": asdict(cell.in_domain),
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
    return None if value is None else asdict(value)


def _machine(run: Run) -> str:
    versions = run.result.get("versions")
    named = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, Mapping) else []
    device, threads = run.hardware
    return " · ".join([*named, f"device {device}", f"threads {threads}"])


def _counted(texts: Iterable[str]) -> list[Origin]:
    return [Origin(text, count) for text, count in Counter(texts).most_common()]
