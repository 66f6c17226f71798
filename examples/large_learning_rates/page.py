"""The experiment's tables, in Markdown, and its page."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from steppe.analysis.drawing import axis, blank, line_style, plain
from steppe.analysis.page import Section, write_page

METHODS = ("last", "average", "swad", "lookahead", "lookahead-mean", "lookahead-anchor", "lookahead-mean-anchor")
NAMES = {"last": "last weights", "average": "uniform average", "swad": "SWAD", "lookahead fast": "lookahead, fast"}
OWN, SAME = "of 5 % of these weights' rms", "of 5 % of the rms at the start"
PER_METHOD = {
    "held_out_accuracy": ("accuracy on the held-out domain, %", "%", 100, 1),
    "validation_accuracy": ("accuracy on the source domains' validation pictures, %", "%", 100, 1),
    "held_out_loss": ("loss on the held-out domain, nats", "nats", 1, 2),
    "validation_loss": ("loss on validation pictures, nats", "nats", 1, 2),
    "held_out_entropy_own": (f"local entropy loss on the held-out domain, noise {OWN}, nats", "nats", 1, 2),
    "validation_entropy_own": (f"local entropy loss on validation pictures, noise {OWN}, nats", "nats", 1, 2),
    "held_out_rise_own": (f"local entropy loss less the loss, held-out domain, noise {OWN}, nats", "nats", 1, 3),
    "validation_rise_own": (f"local entropy loss less the loss, validation, noise {OWN}, nats", "nats", 1, 3),
    "held_out_rise_same": (f"local entropy loss less the loss, held-out domain, noise {SAME}, nats", "nats", 1, 3),
    "validation_rise_same": (f"local entropy loss less the loss, validation, noise {SAME}, nats", "nats", 1, 3),
    "weights": ("root mean square of the weights", "rms", 1, 4),
}
"""Measure → its title, what the axis of a chart says, what it is multiplied by, digits."""
PER_OPTIMIZER = {
    "distance": ("mean distance between the fast weights' snapshots of the second half", "distance", 1, 2),
    "relative_distance": ("that distance over the snapshots' mean norm", "distance / norm", 1, 3),
    "cosine": ("mean cosine between them, as seen from the first", "cosine", 1, 2),
    "cka": ("linear CKA between the first's and the last's features on the held-out domain", "CKA", 1, 2),
    "pull": ("size of the anchor's pull over the gradient's, mean of the second half", "pull / gradient", 1, 3),
}
WIDE = ("distance",)
"""Measures that grow by powers of ten."""

WORTH = (
    "Means over {seeds} seeds, with standard errors, where the value is finite.\n\n"
    "The slow weights of Lookahead move alpha times as far as the fast ones: the fair control for Lookahead at a "
    "factor F is SGD at about alpha F, beside SGD at F.\n\n"
    "Local entropy less the loss is what noise on the weights adds: lower is flatter. The noise is measured in the "
    "root mean square of the very weights, or of the weights that training began with, which is one noise for all."
)
EXPLORED = (
    "Means over {seeds} seeds, with standard errors. The anchor's strength is chosen so that it pulls by the same "
    "share of the way at every factor."
)
COURSE = (
    "Validation loss of the weights against the step, mean over the seeds that are finite there, the statistics of "
    "batch normalisation re-estimated for each. Where averaging does not converge and interpolation does, the line of "
    "the average stays high while Lookahead's comes down. Fast weights are shown for plain Lookahead, one step before "
    "the end of a round."
)
COURSES = ("last", "average", "swad", "lookahead fast", *METHODS[3:])

Cells = dict[str, dict[float, list[float]]]
"""Row → factor → a number a seed; NaN where the run diverged, or the measure is of features that are all alike."""


def cells(runs: Iterable[dict[str, Any]], measure: str) -> Cells:
    """One measure of all runs."""
    found: Cells = defaultdict(lambda: defaultdict(list))
    for run in runs:
        own = ["last", "average", "swad"] if run["optimizer"] == "sgd" else [run["optimizer"]]
        if measure in PER_OPTIMIZER and run["optimizer"] in _order(measure):
            found[run["optimizer"]][run["factor"]].append(run.get("diversity", {}).get(measure, math.nan))
        for name in own if measure in PER_METHOD else ():
            found[name][run["factor"]].append(_value(run.get("methods", {}).get(name, {}), measure))
    return found


def _value(measured: dict[str, float], measure: str) -> float:
    part, rise, noise = measure.partition("_rise_")
    if rise:  # local entropy holds the loss itself: what the noise adds to it is how sharp the ground is
        return measured.get(f"{part}_entropy_{noise}", math.nan) - measured.get(f"{part}_loss", math.nan)
    return measured.get(measure, math.nan)


def summary(values: list[float]) -> tuple[float, float, int]:
    """Mean and standard error over the seeds whose value is finite, and how many others there are."""
    good = [value for value in values if math.isfinite(value)]
    mean = statistics.fmean(good) if good else math.nan
    error = statistics.stdev(good) / math.sqrt(len(good)) if len(good) > 1 else math.nan
    return mean, error, len(values) - len(good)


def table(runs: list[dict[str, Any]]) -> str:
    """All measures, a table each: rows the methods, columns the learning rate's factors."""
    factors = sorted({run["factor"] for run in runs})
    seeds = len({run["seed"] for run in runs})
    parts = []
    for measure, (title, _, unit, digits) in {**PER_METHOD, **PER_OPTIMIZER}.items():
        found = cells(runs, measure)
        lines = [f"**{_sentence(title)}** (mean ± standard error, {seeds} seeds)", ""]
        lines += ["| | " + " | ".join(f"{factor:g}×" for factor in factors) + " |"]
        lines += ["| --- |" + " ---: |" * len(factors)]
        for row in (row for row in _order(measure) if row in found):
            shown = (_cell(found[row].get(factor, []), unit, digits) for factor in factors)
            lines.append(f"| {NAMES.get(row, row)} | " + " | ".join(shown) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(values: list[float], unit: int, digits: int) -> str:
    mean, error, lost = summary(values)
    if math.isnan(mean):
        return f"not finite ({lost})" if lost else "–"
    form = f".{digits}f" if mean < 1000 else ".1e"  # weights that ran away are counted in powers of ten
    spread = "" if math.isnan(error) else f" ± {unit * error:{form}}"
    return f"{unit * mean:{form}}{spread}" + (f" ({lost} not finite)" if lost else "")


def chart(runs: list[dict[str, Any]], measure: str) -> go.Figure:
    """A measure against the learning rate's factor, a line a method, with standard errors."""
    _, short, unit, _ = {**PER_METHOD, **PER_OPTIMIZER}[measure]
    found = cells(runs, measure)
    rows = [row for row in _order(measure) if row in found]
    across = axis("learning rate, in the baseline's") | {"type": "log", "tickvals": sorted({r["factor"] for r in runs})}
    up = axis(short) | ({"type": "log"} if measure in WIDE else {})
    figure = blank(across, up)
    for row in rows:
        factors = sorted(found[row])
        means, errors, _ = zip(*(summary(found[row][factor]) for factor in factors), strict=True)
        figure.add_scatter(
            x=factors,
            y=plain([unit * mean for mean in means]),
            error_y={"array": plain([unit * error for error in errors]), "thickness": 1.4, "width": 4},
            hovertemplate="%{y:.4g}",
            **line_style(NAMES.get(row, row), [NAMES.get(each, each) for each in rows]),
        )
    return figure


def course(runs: list[dict[str, Any]], factor: float) -> go.Figure:
    """Validation loss against the step at one factor, a line for each kind of weights."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for name, row in run.get("trace", {}).items() if run["factor"] == factor else ():
            for step, loss in zip(row["step"], row["loss"], strict=True):
                found[name][step].append(loss)
    rows = [row for row in COURSES if row in found]
    figure = blank(axis("step"), axis("loss, nats") | {"type": "log"})
    for row in rows:
        steps = sorted(found[row])
        figure.add_scatter(
            x=steps,
            y=plain([summary(found[row][step])[0] for step in steps]),
            hovertemplate="%{y:.4g}",
            **line_style(NAMES.get(row, row), [NAMES.get(each, each) for each in rows]),
        )
    return figure


def write(path: Path, runs: list[dict[str, Any]], data: str, held_out: str) -> Path:
    """One HTML file with a chart a measure, and one a factor."""
    seeds = len({run["seed"] for run in runs})
    parts = (
        ("What the weights are worth", PER_METHOD, WORTH),
        ("What the fast weights explore", PER_OPTIMIZER, EXPLORED),
    )
    sections = [
        Section(
            title,
            {_sentence(name): chart(runs, measure) for measure, (name, *_) in measures.items()},
            text.format(seeds=seeds),
        )
        for title, measures, text in parts
    ]
    courses = {f"Learning rate {f:g}×": course(runs, f) for f in sorted({run["factor"] for run in runs})}
    sections.insert(1, Section("Averaging and interpolating, step by step", courses, COURSE))
    return write_page(path, f"Large learning rates on {data}, {held_out} held out", sections)


def _order(measure: str) -> tuple[str, ...]:
    if measure == "pull":
        return tuple(name for name in METHODS if "anchor" in name)
    return METHODS if measure in PER_METHOD else ("sgd", *METHODS[3:])


def _sentence(title: str) -> str:
    return title[0].upper() + title[1:]
