"""The colours of figures: the page's own, and scales, on light ground and on dark.

Scales run in lightness, from the page's ground to the far end, so they are read in any form of colour blindness and in
print. The diverging one is vermilion below and blue above, which all can tell.
"""

from __future__ import annotations

from typing import Any

from steppe.look.palette import WHEEL

PAPER, INK, MUTED, GRID = "#fbfaf6", "#20252b", "#59616b", "#e6e2d6"
"""As ``page.css`` of the report has them on light ground."""

VARIABLES = {PAPER: "--paper", INK: "--ink", MUTED: "--muted", GRID: "--grid"}
"""What they are called there."""

SEQUENTIAL = (
    ("#edf2f3", "#1e2a31"),
    ("#c9dfe9", "#1f4155"),
    ("#9cc6dd", "#235a78"),
    ("#69a7cc", "#2f779d"),
    ("#3a84b1", "#4a97c0"),
    ("#15618f", "#78b7dc"),
    ("#0a4065", "#acd5ee"),
    ("#072a45", "#def0fa"),
)
"""From little to much: on light, on dark."""

DIVERGING = (
    ("#963900", "#ffb385"),
    ("#d9783f", "#c96b36"),
    ("#f2c5a6", "#6e4129"),
    ("#f1eee5", "#22272b"),
    ("#a9cde3", "#24485f"),
    ("#4790bd", "#3f86b0"),
    ("#00517f", "#9ad0f2"),
)
"""From −1 over 0 to 1."""

DARK = dict([*SEQUENTIAL, *DIVERGING, *((ink.light, ink.dark) for ink in WHEEL)])
"""What a colour on light ground is on dark."""


def scale(stops: tuple[tuple[str, str], ...]) -> list[list[Any]]:
    """A plotly colour scale, on light ground."""
    return [[place / (len(stops) - 1), light] for place, (light, _) in enumerate(stops)]
