"""What the figures have in common: axes, lines, colour bars, matrices, and names as plain text. Needs plotly."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from torch import Tensor

from steppe.analysis.shades import GRID, INK, MUTED, PAPER
from steppe.look.palette import inks

DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x")

LABELS = 24
"""Names along an axis, at most."""

LONGEST = 22
"""Letters of a name in a figure; the pointer shows the whole of it."""


def blank(x: dict[str, Any], y: dict[str, Any], *, height: int = 380, ratio: float | None = None) -> go.Figure:
    """A figure without content.

    Args:
        x, y: of :func:`axis`.
        height: in pixels.
        ratio: height over width of what is inside the axes, which a page brings about whatever the window's width.
    """
    return go.Figure(
        layout={
            "template": go.layout.Template(),
            "height": 560 if ratio else height,
            "meta": {"ratio": ratio} if ratio else None,
            "margin": {"l": 64, "r": 16, "t": 60 if ratio else 16, "b": 48 + 16 * x["title"]["text"].count("<br>")},
            "paper_bgcolor": PAPER,
            "plot_bgcolor": PAPER,
            "font": {"color": INK, "size": 12},
            "hoverlabel": {"bgcolor": PAPER, "bordercolor": MUTED, "font": {"color": INK}, "align": "left"},
            "dragmode": False,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
            "xaxis": x,
            "yaxis": y,
        }
    )


def axis(title: str) -> dict[str, Any]:
    """An axis; the title says the unit."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": MUTED}, "standoff": 8},
        "fixedrange": True,
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": MUTED,
        "showline": True,
        "ticks": "outside",
        "tickcolor": MUTED,
        "ticklen": 4,
    }


def colour_bar(title: str, **ticks: Any) -> dict[str, Any]:
    """Above the picture, where a narrow window has room for it."""
    return {
        "title": {"text": title, "side": "bottom", "font": {"size": 12, "color": MUTED}},
        "orientation": "h",
        "thickness": 12,
        "len": 1,
        "x": 0.5,
        "yref": "container",
        "y": 1,
        "yanchor": "top",
        "ypad": 0,
        "outlinewidth": 0,
        "ticks": "outside",
        "ticklen": 3,
        "tickcolor": MUTED,
        **ticks,
    }


def heat_map(
    values: Tensor,
    across: Sequence[str],
    down: Sequence[str],
    colours: list[list[Any]],
    bar: Mapping[str, Any],
    titles: tuple[str, str],
    *,
    form: str,
    limits: Mapping[str, float],
    numbered: bool = False,
) -> go.Figure:
    """A matrix, its first row on top; of squares, unless it is more than twice as wide as high or high as wide.

    Args:
        values: ``[len(down), len(across)]``.
        across, down: what columns and rows are called.
        colours: the scale.
        bar: of :func:`colour_bar`.
        titles: of the axes, across and down.
        form: of a value, as d3 has it.
        limits: ``zmin`` and ``zmax``, as far as they do not follow from the values.
        numbered: put the number of a row after its name.
    """
    ratio = min(max(len(down) / len(across), 0.5), 2.0)
    figure = blank(axis(titles[0]), axis(titles[1]), ratio=ratio)
    # Rows and columns stand at their numbers: categories of one name would be one.
    figure.add_heatmap(
        z=plain(values.tolist()),
        x=list(range(len(across))),
        y=list(range(len(down))),
        customdata=[[f"{label(row)} · {label(column)}" for column in across] for row in down],
        colorscale=colours,
        colorbar=bar,
        hovertemplate=f"%{{customdata}}<br>%{{z:{form}}}<extra></extra>",
        texttemplate=f"%{{z:{form}}}" if max(values.shape) <= 6 else None,
        xgap=1,
        ygap=1,
        **limits,
    )
    rows = [f"{layer_label(name)}  <b>{i}</b>" if numbered else layer_label(name) for i, name in enumerate(down, 1)]
    columns = [layer_label(name) for name in across]
    for each, names in ((figure.layout.xaxis, columns), (figure.layout.yaxis, rows)):
        shown = range(0, len(names), math.ceil(len(names) / LABELS))
        each.update(tickvals=list(shown), ticktext=[names[i] for i in shown], tickfont={"size": 10})
        each.update(constrain="domain", showgrid=False, showline=False, ticks="", automargin=True)
    figure.update_xaxes(range=[-0.5, len(across) - 0.5], tickangle=-90 if max(map(len, across)) > 3 else 0)
    figure.update_yaxes(range=[len(down) - 0.5, -0.5], scaleanchor="x" if ratio == len(down) / len(across) else None)
    return figure.update_layout(hovermode="closest", showlegend=False, margin={"l": 16, "b": 16})


def line_style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """How the line of one of ``names`` is drawn: told apart by colour and by symbol."""
    ink = inks(names)[name]
    return {
        "name": label(name, LONGEST),
        "mode": "lines+markers",
        "line": {"color": ink.light, "width": 2, "dash": DASHES[ink.turn % len(DASHES)]},
        "marker": {"color": ink.light, "size": 6, "symbol": SYMBOLS[names.index(name) % len(SYMBOLS)]},
    }


def label(name: str, longest: int | None = None) -> str:
    """A name as text (plotly reads a little HTML), cut at the end where it is long."""
    return html.escape(name if longest is None or len(name) <= longest else f"{name[: longest - 1]}…", quote=False)


def layer_label(name: str) -> str:
    """The name of a module, cut at the beginning where it is long: modules are told apart by the end."""
    return label(name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}")


def noted(title: str, broken: int) -> str:
    """An axis's title with a note on what could not be drawn."""
    if not broken:
        return title
    return f"{title}<br>{broken} {'point' if broken == 1 else 'points'} without a finite loss left blank"


def plain(values: Any) -> Any:
    """Nested lists of numbers with ``None`` in the place of what is not finite, as JSON has it."""
    if isinstance(values, Sequence):
        return [plain(each) for each in values]
    return values if math.isfinite(values) else None
