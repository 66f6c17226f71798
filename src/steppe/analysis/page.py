"""A page of figures as one HTML file that needs nothing else, in the look of the report."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from steppe.analysis.shades import DARK, VARIABLES
from steppe.look import style_sheet


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        figures: caption → plotly figure; two stand side by side where there is room.
        text: what is said before them, as plain text; an empty line begins a paragraph.
    """

    title: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def write_page(path: Path | str, title: str, sections: Sequence[Section]) -> Path:
    """Write figures as one HTML file: no network, no file beside it, light or dark as the reader's system is.

    The numbers are in it as JSON (``#steppe-data``). The file appears whole or not at all; the same figures give the
    same bytes.

    Args:
        path: of the file; its folder is made.
        title: the page's.
        sections: from top to bottom.

    Returns:
        ``path``.

    Raises:
        ValueError: there is no section.
        OSError: the file cannot be written.
    """
    if not sections:
        raise ValueError("a page takes at least one section")
    path = Path(path)
    page = render(title, sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def render(title: str, sections: Sequence[Section]) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    figures = [figure for section in sections for figure in section.figures.values()]
    data = {"figures": [json.loads(figure.to_json()) for figure in figures], "dark": DARK, "variables": VARIABLES}
    # In a script nothing but "</" could end it, and plotly's texts may hold any name.
    plain = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    bodies, number = [], 0
    for section in sections:
        bodies.append(_section(section, number))
        number += len(section.figures)
    return _template("page.html").format(
        title=html.escape(title),
        css=style_sheet(),
        own_css=_template("page.css"),
        sections="\n".join(bodies),
        data=plain,
        plotly=get_plotlyjs(),
        script=_template("page.js"),
    )


def _section(section: Section, first: int) -> str:
    paragraphs = [f"<p>{html.escape(part.strip())}</p>" for part in section.text.split("\n\n") if part.strip()]
    charts = [
        f'<figure class="panel"><figcaption>{caption}</figcaption>'
        f'<div class="chart" role="img" aria-label="{caption}" data-figure="{number}"></div></figure>'
        for number, caption in enumerate(map(html.escape, section.figures), first)
    ]
    grid = ['<div class="charts">', *charts, "</div>"] if charts else []
    return "\n".join(["<section>", f"<h2>{html.escape(section.title)}</h2>", *paragraphs, *grid, "</section>"])


def _template(name: str) -> str:
    return resources.files("steppe.analysis").joinpath("templates", name).read_text(encoding="utf-8")
