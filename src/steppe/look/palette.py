"""One colour for a method wherever it appears: distinct under the common forms of colour blindness, on light and dark.

The hues follow Okabe & Ito (2008), darkened or lightened until each has a contrast of at least 3:1 with the page, as
graphics need (WCAG 2.1, 1.4.11). Beyond eight methods the hues repeat with another pattern and another dash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ink:
    """How a method is drawn: its colour on light and on dark, and how many times the hues have been gone through."""

    light: str
    dark: str
    turn: int = 0


GREY = Ink("#6b7280", "#9ca6b4")
BLUE = Ink("#0072b2", "#56b0e6")
VERMILION = Ink("#d04f00", "#f58a4b")
GREEN = Ink("#00835f", "#2fc79b")
PINK = Ink("#b9588f", "#e6a0c6")
OCHRE = Ink("#9a7000", "#e3b341")
PURPLE = Ink("#6a4fb3", "#b6a0f2")
SLATE = Ink("#2f3a45", "#dfe5ea")

FIXED = {"erm": GREY, "sam": BLUE, "disam": VERMILION, "asam": GREEN, "gsam": PINK, "sagm": OCHRE}
WHEEL = (BLUE, VERMILION, GREEN, PINK, OCHRE, PURPLE, SLATE, GREY)


def inks(methods: Sequence[str]) -> dict[str, Ink]:
    """Method -> its ink. Well-known methods keep theirs from page to page; the others take what is left, in order."""
    chosen = {method: FIXED[method] for method in methods if method in FIXED}
    taken = set(chosen.values())
    free = [ink for ink in WHEEL if ink not in taken]
    turn = 0
    for method in methods:
        if method in chosen:
            continue
        if not free:
            turn += 1
            free = [Ink(ink.light, ink.dark, turn) for ink in WHEEL]
        chosen[method] = free.pop(0)
    return {method: chosen[method] for method in methods}
