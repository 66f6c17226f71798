"""The report as one HTML file that needs nothing else: no server, no network, no file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from steppe.benchmark.radii import found_radii
from steppe.errors import SteppeError
from steppe.look import style_sheet
from steppe.report.against import against, against_table
from steppe.report.page_data import (
    MOST_FILES,
    View,
    chosen_step,
    commands,
    finished,
    machines,
    page_data,
    run_path,
    settings_table,
    view,
)
from steppe.report.page_data import Extras as Extras
from steppe.report.plans import open_selected
from steppe.report.ranking import names, percent, seconds, signed, spread
from steppe.report.significance import Family, family
from steppe.report.statistics import Comparison, Estimate, Summary, summarise
from steppe.report.tables import Table, overall_table
from steppe.report.terminal import store_notes
from steppe.training.files import make_directory, write_atomically

NAME = "report.html"
OPEN_TABLE_UP_TO = 12  # with more runs than this, the table of runs is folded
LISTED_UP_TO = 400  # with more, its rows are made when they are looked at: a browser would take seconds for them
NAMED_UP_TO = 8  # a number of more runs than this names none of them where the pointer rests on it


def write_page(
    root: Path | str,
    out: Path | str | None = None,
    *,
    selection: str | None = None,
    summary: Summary | None = None,
    extras: Extras | None = None,
) -> Path:
    """Writes the report on the runs below ``root`` to ``out`` (``root/report.html``) and returns its path.

    Of a sweep that searched it shows the runs that ``selection`` chooses, by default the sweep's own first one.

    The file appears whole or not at all. Two calls on the same store write the same bytes.

    Args:
        root: the store.
        out: where to.
        selection: how the runs of sweeps are chosen.
        summary: the runs it is about, where they have been read already; by default all of the store.
        extras: what is shown beyond the usual.

    Raises:
        SteppeError: no finished run below ``root``; ``out`` cannot be written.
    """
    root = Path(root)
    if summary is None:
        found = open_selected(root, name=selection)
        summary = summarise(found.runs)
        extras = extras or Extras(drawn=summarise(found.everything) if found.choices else None)
    if not summary.runs:
        raise SteppeError("\n".join([f"{root}: nothing to report.", *store_notes(summary.runs)]))
    out = root / NAME if out is None else Path(out)
    extras = extras or Extras()
    files = MOST_FILES // len(summary.comparisons)
    views = [view(comparison, extras, files) for comparison in summary.comparisons]
    page = render(summary, views, root, extras)
    make_directory(out.parent)
    write_atomically(out, lambda file: file.write(page.encode("utf-8", "replace")))
    return out


def render(summary: Summary, views: list[View], root: Path, extras: Extras | None = None) -> str:
    """The page as text."""
    extras = extras or Extras()
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
        "signed": signed,
        "spread": spread,
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
        chosen_step=chosen_step,
        open_table=len(runs) <= OPEN_TABLE_UP_TO,
        listed=len(runs) <= LISTED_UP_TO,
        choices=choices(summary),
        first=list(dict.fromkeys(name for item in views for name in item.first)),
        overall=overall_table(summary.comparisons) if len(views) > 1 else None,
        tests=_over_data_sets(summary, extras),
        against=_against(summary, extras),
        radii=list(found_radii(root)),
        reach=reach,
        scale=scale,
    )


def provenance(value: Estimate) -> str:
    """Which runs a number comes from, in words."""
    if len(value.runs) > NAMED_UP_TO:
        return f"from {len(value.runs)} runs"
    return f"from {'run' if len(value.runs) == 1 else 'runs'} {', '.join(value.runs)}"


def choices(summary: Summary) -> dict[str, list[str]]:
    """What the page can be narrowed to: key -> the names, for what there is more than one of."""
    comparisons = summary.comparisons
    found = {
        "dataset": [comparison.name for comparison in comparisons],
        "method": [method.name for comparison in comparisons for method in comparison.methods],
        "domain": [domain for comparison in comparisons for domain in comparison.held_out],
    }
    return {key: list(dict.fromkeys(names)) for key, names in found.items() if len(set(names)) > 1}


def reach(tests: Family) -> float:
    """The half-width of a drawing of intervals: as far as they reach, but no wider than three times the largest
    difference, so that one interval of two pairs does not leave the others no room."""
    ends = [abs(end) for pair in tests.pairs for end in (pair.difference, pair.low, pair.high) if end is not None]
    most = 3 * max((abs(pair.difference) for pair in tests.pairs), default=0.0)
    return min(max(ends, default=0.0), most) or 1.0


def scale(value: float, reach: float) -> str:
    """Where a difference lies in a drawing from 0 to 100 whose middle is zero; what is further out is cut off."""
    return f"{min(100.0, max(0.0, 50 + 48 * value / reach)):.2f}"


def _over_data_sets(summary: Summary, extras: Extras) -> Family | None:
    if len(summary.comparisons) < 2:
        return None
    tests = family(summary.comparisons, unit=extras.unit, against=extras.baseline)
    return tests if tests.pairs else None


def _against(summary: Summary, extras: Extras) -> Table | None:
    if extras.against is None:
        return None
    roots = [found.runs.root.resolve().name if found.runs.root else "" for found in (summary, extras.against)]
    ours, theirs = roots if roots[0] != roots[1] and all(roots) else ("these", "those")
    return against_table(against(summary, extras.against), (ours, theirs))


def has_spread(comparison: Comparison) -> bool:
    """Whether any number of the comparison has a standard error."""
    return any(cell.held_out.error is not None for method in comparison.methods for cell in method.cells.values())


def _verbatim(environment: jinja2.Environment, name: str) -> Markup:
    """A file of the templates' folder as it is: our own text, not data."""
    loader: Any = environment.loader
    source, _, _ = loader.get_source(environment, name)
    return Markup(source)
