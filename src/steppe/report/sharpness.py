"""Sharpness on the held-out domain over training: the variance of mini-batch gradients, where runs measured it.

The DISAM paper's figure 6. ``--sharpness`` of ``steppe train`` and ``bench`` puts it into ``metrics.jsonl``.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from steppe.report.curves import mean_curve
from steppe.report.reading import UnreadableFile
from steppe.report.runs import Run
from steppe.report.statistics import Comparison

COLUMN = "gradient_variance"


@dataclass(frozen=True)
class SharpnessCurve:
    """Gradient variance of one method with one domain held out at each evaluation: the geometric mean over its seeds,
    whose values differ by factors."""

    method: str
    held_out: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    runs: tuple[str, ...]


def sharpness_curves(
    comparison: Comparison, *, methods: Collection[str] | None = None, seeds: int | None = None
) -> list[SharpnessCurve]:
    """The curves of the runs that measured it; files that cannot be read are reported with the losses' curves."""
    found = []
    for method in comparison.methods:
        if methods is not None and method.name not in methods:
            continue
        for held_out, cell in method.cells.items():
            measured = {run.id: values for run in cell.runs[:seeds] if (values := gradient_variances(run))}
            if measured:
                steps, logs = mean_curve(list(measured.values()))
                means = tuple(math.exp(value) for value in logs)
                if means:
                    found.append(SharpnessCurve(method.name, held_out, tuple(map(int, steps)), means, tuple(measured)))
    return found


def gradient_variances(run: Run) -> dict[int, float]:
    """Step -> logarithm of the variance; empty where it was not measured."""
    try:
        records = run.metrics()
    except UnreadableFile:
        return {}
    found = {}
    for record in records:
        value, step = record.get(COLUMN), record.get("step")
        if record.get("kind") == "eval" and isinstance(step, int) and isinstance(value, (int, float)) and value > 0:
            found[step] = math.log(value)
    return found
