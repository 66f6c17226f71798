"""The report as one HTML file that needs nothing else: no server, no network, no file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from steppe.errors import SteppeError
from steppe.look import style_sheet
from steppe.report.page_data import View, commands, finished, machines, page_data, run_path, settings_table, view
from steppe.report.ranking import names, percent, seconds
from steppe.report.selected import load_selected
from steppe.report.statistics import Comparison, Estimate, Summary, summarise
from steppe.report.terminal import store_notes
from steppe.training.files import make_directory, write_atomically

NAME = "report.html"
OPEN_TABLE_UP_TO = 12  # with more runs than this, the table of runs is folded


def write_page(root: Path | str, out: Path | str | None = None, *, selection: str | None = None) -> Path:
    """Writes the report on the runs below ``root`` to ``out`` (``root/report.html``) and returns its path.

    Of a sweep that searched it shows the runs that ``selection`` chooses, by default the sweep's own first one.

    The file appears whole or not at all. Two calls on the same store write the same bytes.

    Raises:
        SteppeError: no finished run below ``root``; ``out`` cannot be written.
    """
    root = Path(root)
    runs = load_selected(root, selection).runs
    summary = summarise(runs)
    if not runs:
        raise SteppeError("\n".join([f"{root}: nothing to report.", *store_notes(runs)]))
    out = root / NAME if out is None else Path(out)
    page = render(summary, [view(comparison) for comparison in summary.comparisons], root)
    make_directory(out.parent)
    write_atomically(out, lambda file: file.write(page.encode("utf-8", "replace")))
    return out


def render(summary: Summary, views: list[View], root: Path) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steppe.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "percent": percent,
        "names": names,
        "seconds": seconds,
        "provenance": provenance,
    }
    runs = list(summary.runs)
    return environment.get_template("page.html.j2").render(
        css=Markup(style_sheet()),
        script=_verbatim(environment, "page.js"),
        plotly=Markup(get_plotlyjs()),
        data=page_data(views, root),
        views=views,
        runs=runs,
        notes=store_notes(summary.runs, root),
        root=root,
        commands=commands(runs),
        machines=machines(runs),
        finished=finished(runs),
        settings_table=settings_table,
        run_path=lambda run: run_path(run, root),
        has_spread=has_spread,
        open_table=len(runs) <= OPEN_TABLE_UP_TO,
    )


def provenance(value: Estimate) -> str:
    """Which runs a number comes from, in words."""
    return f"from {'run' if len(value.runs) == 1 else 'runs'} {', '.join(value.runs)}"


def has_spread(comparison: Comparison) -> bool:
    """Whether any number of the comparison has a standard error."""
    return any(cell.held_out.error is not None for method in comparison.methods for cell in method.cells.values())


def _verbatim(environment: jinja2.Environment, name: str) -> Markup:
    """A file of the templates' folder as it is: our own text, not data."""
    loader: Any = environment.loader
    source, _, _ = loader.get_source(environment, name)
    return Markup(source)
