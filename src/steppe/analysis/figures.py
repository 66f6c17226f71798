"""One figure for each instrument, and a page to put them on. Needs plotly.

The figures are plotly's, in the colours of the report on light ground; on a page (:func:`write_page`) they follow the
reader's choice of light or dark. What is not finite is left blank, and a note says how much of it there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import plotly.graph_objects as go
from torch import Tensor

from steppe.analysis.diversity import Pairwise
from steppe.analysis.drawing import LONGEST, SYMBOLS, axis, blank, colour_bar, heat_map, label, line_style, noted, plain
from steppe.analysis.entropy import LocalEntropy
from steppe.analysis.landscape import Plane, Segment
from steppe.analysis.page import Section as Section
from steppe.analysis.page import write_page as write_page
from steppe.analysis.shades import DIVERGING, INK, MUTED, PAPER, SEQUENTIAL, scale
from steppe.analysis.similarity import CKA
from steppe.look.palette import VERMILION

LEVELS = 16
"""Contours in a plane, about."""

SHORT = 14
"""Letters of a name in a plane."""

Of = Literal["distance", "cosine"]
Measure = Literal["loss", "accuracy"]


def matrix(result: Pairwise, of: Of = "distance", *, steps: Sequence[float] | None = None) -> go.Figure:
    """Distances or cosines of every pair of snapshots.

    Args:
        result: of :func:`~steppe.analysis.pairwise`.
        of: which.
        steps: when the snapshots were taken, in steps of the optimizer; by default they are counted from 0.

    Raises:
        ValueError: there are not as many steps as snapshots.
    """
    if steps is not None and len(steps) != len(result.norms):
        raise ValueError(f"{len(steps)} steps for {len(result.norms)} snapshots")
    names = [f"{step:g}" for step in (range(len(result.norms)) if steps is None else steps)]
    titles = ("snapshot", "snapshot") if steps is None else ("step", "step")
    if of == "cosine":
        bar = colour_bar("cosine, seen from the origin (blank)")
        return heat_map(
            result.cosines, names, names, scale(DIVERGING), bar, titles, form=".2f", limits={"zmin": -1, "zmax": 1}
        )
    bar = colour_bar("distance between weights")
    return heat_map(result.distances, names, names, scale(SEQUENTIAL), bar, titles, form=".3g", limits={"zmin": 0})


def diversity(results: Mapping[str, Mapping[float, Pairwise]], of: Of = "distance", *, at: str = "step") -> go.Figure:
    """The mean distance or cosine over pairs, against the step (or whatever else was varied).

    Args:
        results: name of a line → x → result of :func:`~steppe.analysis.pairwise`.
        of: which.
        at: what x is, with its unit.
    """
    figure = blank(axis(at), axis(f"mean {of} between snapshots"))
    for name, line in results.items():
        y = [each.mean_distance if of == "distance" else each.mean_cosine for each in line.values()]
        figure.add_scatter(x=list(line), y=plain(y), hovertemplate="%{y:.4g}", **line_style(name, list(results)))
    return figure.update_layout(hovermode="x unified")


def cka(result: CKA, names: tuple[str, str] = ("model a", "model b")) -> go.Figure:
    """CKA of every layer of one model (down) with every layer of the other (across).

    Values below 0, which an unbiased estimate of nothing takes, have the colour of 0. Where both models have the same
    layers, those across are shown by number.

    Args:
        result: of :func:`~steppe.analysis.cka`.
        names: what the models are called.
    """
    alike = result.layers_a == result.layers_b
    numbers = [str(number) for number in range(1, len(result.layers_a) + 1)]
    figure = heat_map(
        result.values,
        numbers if alike else result.layers_b,
        result.layers_a,
        scale(SEQUENTIAL),
        colour_bar("linear CKA"),
        (f"layer of {label(names[1], LONGEST)}", f"layer of {label(names[0], LONGEST)}"),
        form=".2f",
        limits={"zmin": 0, "zmax": 1},
        numbered=alike,
    )
    pairs = [[f"{label(a)} · {label(b)}" for b in result.layers_b] for a in result.layers_a]
    return figure.update_traces(customdata=pairs)


def entropy(results: Mapping[str, LocalEntropy | Sequence[LocalEntropy]]) -> go.Figure:
    """Local entropy loss with its standard error: a point for each name, or a line over σ.

    Args:
        results: name → result of :func:`~steppe.analysis.local_entropy`, or one for each of several σ.
    """
    lines = {name: [each] if isinstance(each, LocalEntropy) else list(each) for name, each in results.items()}
    sigmas = sorted({each.sigma for line in lines.values() for each in line})
    over_sigma = any(len(line) > 1 for line in lines.values())
    if over_sigma:
        figure = blank(axis("σ, in units of the weights"), axis("local entropy loss ± s.e. (nats)"))
        figure.update_xaxes(type="log", tickvals=sigmas, ticktext=[f"{sigma:g}" for sigma in sigmas])
    else:
        at = f"<br>σ = {sigmas[0]:g}, in units of the weights" if len(sigmas) == 1 else ""
        figure = blank(axis(f"local entropy loss ± s.e. (nats){at}"), axis(""), height=90 + 36 * len(lines))
        figure.update_yaxes(tickvals=list(range(len(lines))), ticktext=[label(name, LONGEST) for name in lines])
        figure.update_yaxes(range=[len(lines) - 0.5, -0.5], showgrid=False, automargin=True)
        figure.update_layout(showlegend=False, margin={"l": 16})
    for number, (name, line) in enumerate(lines.items()):
        style = line_style(name, list(lines)) | {"mode": "lines+markers" if over_sigma else "markers"}
        values = plain([each.value for each in line])
        errors = {
            "type": "data",
            "array": plain([each.standard_error for each in line]),
            "color": style["line"]["color"],
            "thickness": 1.6,
            "width": 5,
        }
        places = {"y": values, "error_y": errors} if over_sigma else {"x": values, "error_x": errors}
        figure.add_scatter(
            **({"x": [each.sigma for each in line]} if over_sigma else {"y": [number]}),
            **places,
            hovertext=[
                f"<b>{label(name)}</b>, σ {each.sigma:g}<br>{each.value:.5g} ± {each.standard_error:.2g}"
                f"<br>loss at w {each.centre:.5g}"
                for each in line
            ],
            hoverinfo="text",
            **style,
        )
    return figure


def segment(results: Segment | Mapping[str, Segment], *, ends: tuple[str, str] = ("start", "end")) -> go.Figure:
    """Loss and accuracy along the line between two sets of weights, one above the other.

    Args:
        results: of :func:`~steppe.analysis.segment`; several by name.
        ends: what the two are called.
    """
    lines = {"": results} if isinstance(results, Segment) else dict(results)
    judged = any(each.accuracy is not None for each in lines.values())
    across = f"position t<br>0: {label(ends[0], LONGEST)} · 1: {label(ends[1], LONGEST)}"
    broken = sum(each.non_finite for each in lines.values())
    figure = blank(axis(noted(across, broken)), axis("loss (nats)"), height=520 if judged else 380)
    for name, each in lines.items():
        style = line_style(name, list(lines))
        figure.add_scatter(x=each.positions, y=plain(each.loss), hovertemplate="t %{x:.3g}: %{y:.4g}", **style)
        if each.accuracy is not None:
            percent = [100 * value for value in each.accuracy]
            below = style | {"showlegend": False, "yaxis": "y2"}
            figure.add_scatter(x=each.positions, y=percent, hovertemplate="t %{x:.3g}: %{y:.1f} %", **below)
    for t in (0, 1):
        figure.add_shape(
            type="line", x0=t, x1=t, y0=0, y1=1, yref="paper", line={"color": MUTED, "width": 1, "dash": "dot"}
        )
    if judged:
        lower = {**axis("accuracy (%)"), "domain": [0, 0.46], "anchor": "x"}
        figure.update_layout(xaxis={"anchor": "y2"}, yaxis={"domain": [0.54, 1]}, yaxis2=lower)
    return figure.update_layout(showlegend=len(lines) > 1, hovermode="closest")


def plane(result: Plane, of: Measure = "loss", *, names: Sequence[str] = ("w₁", "w₂", "w₃")) -> go.Figure:
    """Filled contours of loss or accuracy in the plane, with the three sets of weights marked.

    A loss whose largest value is ten times the smallest or more is coloured by its logarithm; figures are the loss's.
    A distance is as long across as upwards, unless the picture would be very flat or very high.

    Args:
        result: of :func:`~steppe.analysis.plane`.
        of: which.
        names: what the three are called.

    Raises:
        ValueError: the accuracy, where the targets are no classes; other than three names.
    """
    if of == "accuracy" and result.accuracy is None:
        raise ValueError("there is no accuracy: the targets are not classes")
    if len(names) != 3:
        raise ValueError(f"three names, one for each set of weights, not {len(names)}")
    values = result.loss if result.accuracy is None or of == "loss" else 100 * result.accuracy
    unit = "nats" if of == "loss" else "%"
    ratio = (result.y[-1] - result.y[0]) / (result.x[-1] - result.x[0])
    to_scale = 0.4 <= ratio <= 1.6
    short = [label(name, SHORT) for name in names]
    across = noted(f"distance along {short[0]} → {short[1]}", result.non_finite if of == "loss" else 0)
    figure = blank(axis(across), axis(f"distance towards {short[2]}"), ratio=ratio if to_scale else 1.0)
    figure.update_xaxes(range=[result.x[0], result.x[-1]]).update_yaxes(range=[result.y[0], result.y[-1]])
    shown, contours, ticks = _levels(values, of)
    figure.add_contour(
        x=result.x,
        y=result.y,
        z=plain(shown.tolist()),
        customdata=plain(values.tolist()),
        hovertemplate=f"(%{{x:.3g}}, %{{y:.3g}})<br>{of} %{{customdata:.4g}} {unit}<extra></extra>",
        colorscale=scale(SEQUENTIAL),
        colorbar=colour_bar(f"{of} ({unit})", **ticks),
        line={"color": MUTED, "width": 0.5},
        **contours,
    )
    for place, (name, (x, y), at) in enumerate(zip(names, result.corners, result.at, strict=True)):
        value = at.loss if of == "loss" or at.accuracy is None else 100 * at.accuracy
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            cliponaxis=False,
            name=short[place],
            marker={
                "symbol": SYMBOLS[place],
                "size": 12,
                "color": VERMILION.light,
                "line": {"color": PAPER, "width": 2},
            },
            hovertext=[f"<b>{label(name)}</b><br>{of} {value:.4g} {unit}"],
            hoverinfo="text",
        )
        figure.add_annotation(
            x=x,
            y=y,
            **_beside(
                (x - result.x[0]) / (result.x[-1] - result.x[0]), (y - result.y[0]) / (result.y[-1] - result.y[0])
            ),
            text=f"{short[place]} <b>{value:.3g}</b>",
            font={"color": INK, "size": 12},
            showarrow=False,
            bgcolor=PAPER,
            bordercolor=MUTED,
            borderpad=2,
        )
    if to_scale:
        figure.update_yaxes(scaleanchor="x", constrain="domain").update_xaxes(constrain="domain")
    return figure.update_layout(showlegend=False, hovermode="closest")


def _beside(across: float, up: float) -> dict[str, Any]:
    """Where the label of a point goes, at these shares of the picture's width and height: inwards, and off its middle.

    w₁ and w₂ may lie close together, at one height: the label of what is on the left is below, unless that is outside.
    """
    anchor, shift = ("left", -12) if across < 1 / 3 else ("right", 12) if across > 2 / 3 else ("center", 0)
    return {"xanchor": anchor, "xshift": shift, "yshift": -22 if up > 0.9 or (across < 1 / 3 and up > 0.05) else 22}


def _levels(values: Tensor, of: Measure) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    """What the colour stands for, its contours, and the ticks of the colour bar."""
    finite = values[values.isfinite()].double()
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0)
    if of == "loss" and low > 0 and high >= 10 * low:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if len(decades) < 5 else (1,)
        marks = [m for decade in decades for factor in factors if low <= (m := factor * 10.0**decade) <= high]
        ticks = {"tickvals": [math.log10(mark) for mark in marks], "ticktext": [f"{mark:g}" for mark in marks]}
        values, low, high = values.double().log10(), math.log10(low), math.log10(high)
        size = (high - low) / LEVELS
        start = low + size
    else:
        ticks, size = {}, _round_step((high - low) / LEVELS)
        start = (math.floor(low / size) + 1) * size
    return values, {"zmin": low, "zmax": high, "contours": {"start": start, "end": high, "size": size}}, ticks


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 5, 10, … times a power of ten; 1 for none."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step), 10 * power)
