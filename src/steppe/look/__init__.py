"""How pages look: the colours of methods, and the style sheet that the report and the instruments' pages share."""

from __future__ import annotations

from importlib import resources


def style_sheet() -> str:
    """The style sheet of every page."""
    return resources.files(__name__).joinpath("page.css").read_text(encoding="utf-8")
