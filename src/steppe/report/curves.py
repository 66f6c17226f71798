"""How the training loss of each source domain fell: the convergence picture of the DISAM paper."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steppe.report.runs import Problem, Run, UnreadableFile
from steppe.report.statistics import Comparison

Array = NDArray[np.float64]
MOST_POINTS = 240
"""Longer curves are averaged over stretches of equal length: a panel has not more pixels to show them."""


@dataclass(frozen=True)
class Curve:
    """The training loss of one source domain by one method with one domain held out, mean over its seeds.

    ``loss`` is in the loss's own units (cross-entropy in nats); ``scaled`` is the same curve by `shift_and_scale`.
    """

    method: str
    held_out: str
    domain: str
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    scaled: tuple[float, ...]
    runs: tuple[str, ...]


def curves(
    comparison: Comparison, *, methods: Collection[str] | None = None, seeds: int | None = None
) -> tuple[list[Curve], list[Problem]]:
    """Every curve of the comparison, and the metrics files that could not be read (their runs are left out).

    Args:
        comparison: the runs.
        methods: only of these; a metrics file takes milliseconds to read, and thousands take too long.
        seeds: only of so many runs of each cell, the first.
    """
    found: list[Curve] = []
    problems: list[Problem] = []
    for method in comparison.methods:
        if methods is not None and method.name not in methods:
            continue
        for held_out, cell in method.cells.items():
            losses: dict[str, list[dict[int, float]]] = {}
            runs: dict[str, list[str]] = {}
            for run in cell.runs[:seeds]:
                try:
                    for domain, loss in domain_losses(run).items():
                        losses.setdefault(domain, []).append(loss)
                        runs.setdefault(domain, []).append(run.id)
                except UnreadableFile as error:
                    problems.append(Problem(error.path, error.message))
            for domain in (domain for domain in comparison.domains if domain in losses):
                steps, loss_mean = mean_curve(losses[domain])
                if steps.size:
                    steps, loss_mean = thin(steps, loss_mean, MOST_POINTS)
                    found.append(
                        Curve(
                            method=method.name,
                            held_out=held_out,
                            domain=domain,
                            steps=tuple(int(step) for step in steps),
                            loss=tuple(float(value) for value in loss_mean),
                            scaled=tuple(float(value) for value in shift_and_scale(loss_mean)),
                            runs=tuple(runs[domain]),
                        )
                    )
    return found, problems


def domain_losses(run: Run) -> dict[str, dict[int, float]]:
    """Source domain -> step -> training loss, from the run's metrics; what is not a finite number is left out.

    Raises:
        UnreadableFile: the metrics cannot be read, or a line of them is not what it should be.
    """
    losses: dict[str, dict[int, float]] = {}
    for record in run.metrics():
        if record.get("kind") != "train":
            continue
        step, by_domain = record.get("step"), record.get("domain_loss")
        if not isinstance(step, int) or not isinstance(by_domain, Mapping):
            raise UnreadableFile(run.path / "metrics.jsonl", "a training line has no step or no domain_loss")
        for domain, value in by_domain.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                losses.setdefault(domain, {})[step] = float(value)
    return losses


def mean_curve(losses: Sequence[Mapping[int, float]]) -> tuple[Array, Array]:
    """Steps and mean loss over the seeds, at the steps that every seed has."""
    steps = sorted(set.intersection(*(set(loss) for loss in losses)))
    values = np.array([[loss[step] for step in steps] for loss in losses], dtype=np.float64)
    return np.array(steps, dtype=np.float64), values.mean(axis=0)


def thin(steps: Array, values: Array, most: int) -> tuple[Array, Array]:
    """At most ``most`` points: means over equal stretches, each at the last of its steps."""
    if steps.size <= most:
        return steps, values
    stretch = math.ceil(steps.size / most)
    starts = np.arange(0, steps.size, stretch)
    ends = np.minimum(starts + stretch, steps.size)
    return steps[ends - 1], np.add.reduceat(values, starts) / (ends - starts)


def shift_and_scale(values: Array) -> Array:
    """(x − min x) / (max x − min x): the paper's form, which shows when each domain converges, not how far.

    A constant curve becomes zeros.
    """
    low, high = float(values.min()), float(values.max())
    return np.zeros_like(values) if high == low else (values - low) / (high - low)
