"""Tables as data: what is in a cell, which cells are the best, what is said below. How they look is decided elsewhere.

:mod:`~steppe.report.markdown`, :mod:`~steppe.report.latex` and :mod:`~steppe.report.delimited` write them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from steppe.report.overall import Overall, overall
from steppe.report.published import Figure, Published
from steppe.report.ranking import percent
from steppe.report.significance import Family
from steppe.report.statistics import Comparison, Estimate, Method

Metric = Literal["held-out", "all", "in-domain"]
"""The accuracy that is shown: on the split of the held-out domain that answers the question, on every picture of it, or
on pictures of the domains trained on that were not trained on."""

AVERAGE = "average"


@dataclass(frozen=True)
class Entry:
    """One cell.

    Attributes:
        value: mean and standard error, fractions; None where there is nothing.
        place: 1 for the best of its column, 2 for the second best, as printed; 0 for the others.
        text: shown instead of a value.
    """

    value: Estimate | None = None
    place: int = 0
    text: str = ""


@dataclass(frozen=True)
class Row:
    """A line: what it is about, its cells, and the source where it was published by somebody else."""

    name: str
    entries: tuple[Entry, ...]
    source: str = ""


@dataclass(frozen=True)
class Table:
    """Columns, rows, and what has to be said with them.

    Attributes:
        caption: one sentence.
        key: a word that names the table in files.
        heading: over the first column.
        columns: the other headings.
        rows: own results.
        published: rows of others, below and apart.
        notes: sentences.
    """

    caption: str
    key: str
    heading: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    published: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


WHAT: Mapping[Metric, str] = {
    "held-out": "Accuracy in % on the held-out domain",
    "all": "Accuracy in % on every picture of the held-out domain",
    "in-domain": "Accuracy in % on the domains trained on",
}

_OF_CELL: Mapping[Metric, Callable[[Method, str], Estimate | None]] = {
    "held-out": lambda method, domain: method.cells[domain].held_out if domain in method.cells else None,
    "all": lambda method, domain: method.cells[domain].everything if domain in method.cells else None,
    "in-domain": lambda method, domain: method.cells[domain].in_domain if domain in method.cells else None,
}
_OF_AVERAGE: Mapping[Metric, Callable[[Method], Estimate | None]] = {
    "held-out": lambda method: method.average,
    "all": lambda method: method.average_everything,
    "in-domain": lambda method: method.average_in_domain,
}


def dataset_table(comparison: Comparison, metric: Metric = "held-out", published: Published | None = None) -> Table:
    """The methods on one data set: a column for each held-out domain, and their average where there are several."""
    columns = [*comparison.held_out, *([AVERAGE] if len(comparison.held_out) > 1 else [])]
    rows = []
    for method in comparison.methods:
        values = [_OF_CELL[metric](method, domain) for domain in comparison.held_out]
        if len(columns) > len(values):
            values.append(_OF_AVERAGE[metric](method))
        rows.append((method.name, values))
    chosen = dict.fromkeys(filter(None, map(_chosen, comparison.methods)))
    notes = [_seeds(comparison), *(f"Selected: {how}." for how in chosen)]
    shown: tuple[Row, ...] = ()
    if published is not None:
        shown = tuple(_published_row(figure, comparison.held_out, columns) for figure in published.figures)
        notes += list(published.notes)
    return Table(
        caption=f"{comparison.name}: {WHAT[metric][0].lower()}{WHAT[metric][1:]}, mean ± standard error over seeds.",
        key=comparison.name,
        heading="Algorithm",
        columns=tuple(columns),
        rows=_placed(rows),
        published=shown,
        notes=tuple(notes),
    )


def overall_table(comparisons: Sequence[Comparison]) -> Table:
    """The methods over all data sets: averages over the held-out domains, their mean, and the average rank."""
    summary: Overall = overall(comparisons)
    several = len(summary.datasets) > 1
    columns = [*summary.datasets, *([AVERAGE] if several else []), "average rank"]
    rows = [
        (row.name, [row.averages.get(name) for name in summary.datasets] + ([row.mean] if several else []))
        for row in summary.rows
    ]
    marked = _placed(rows)
    ranks = [f"{row.rank:.2f}" if row.rank is not None else "" for row in summary.rows]
    order = sorted({rank for rank in ranks if rank}, key=float)
    finished = tuple(
        Row(row.name, (*row.entries, Entry(text=rank, place=_place(rank, order))))
        for row, rank in zip(marked, ranks, strict=True)
    )
    return Table(
        caption="Accuracy in % on held-out domains, averaged over them: mean ± standard error over seeds.",
        key="all data sets",
        heading="Algorithm",
        columns=tuple(columns),
        rows=finished,
        notes=(
            f"Rank 1 is the best; ranks are averaged over {_count(summary.cells, 'held-out domain')}"
            + (f" of {len(summary.datasets)} data sets" if several else "")
            + f", among the {_count(summary.ranked, 'method')} that have all of them.",
        ),
    )


def table_of_tests(tests: Family) -> Table:
    """The tests of one family: differences in points, their intervals, and corrected p-values."""
    rows = []
    for pair in tests.pairs:
        interval = "" if pair.low is None or pair.high is None else f"{_points(pair.low)} to {_points(pair.high)}"
        rows.append(
            Row(
                f"{pair.first} − {pair.second}",
                (
                    Entry(text=str(pair.n)),
                    Entry(text=_points(pair.difference)),
                    Entry(text=interval),
                    Entry(text=_p(pair.t.holm), place=int(pair.t.significant)),
                    Entry(text=_p(pair.wilcoxon.holm), place=int(pair.wilcoxon.significant)),
                ),
            )
        )
    marked = any(entry.place for row in rows for entry in row.entries)
    return Table(
        caption="Differences of held-out accuracy in points, and p-values with Holm's correction "
        f"({_count(len(tests.pairs), 'test')} of each kind).",
        key="tests",
        heading="Methods",
        columns=("pairs", "difference", "95 % interval", "paired t", "signed-rank"),
        rows=tuple(rows),
        notes=(*tests.remarks, *(["Bold: at most 0.05."] if marked else [])),
    )


def _placed(rows: Sequence[tuple[str, Sequence[Estimate | None]]]) -> tuple[Row, ...]:
    """The rows with the best and the second best of every column marked, as printed; a lone method is not the best."""
    width = len(rows[0][1]) if rows else 0
    marks: list[list[int]] = []
    for column in range(width):
        shown = [_printed(values[column]) for _, values in rows]
        order = sorted({text for text in shown if text is not None}, key=float, reverse=True)
        several = sum(text is not None for text in shown) > 1 and len(order) > 1
        marks.append([_place(text, order) if several and text is not None else 0 for text in shown])
    return tuple(
        Row(name, tuple(Entry(value, marks[column][line]) for column, value in enumerate(values)))
        for line, (name, values) in enumerate(rows)
    )


def _printed(value: Estimate | None) -> str | None:
    return None if value is None else percent(value.mean)


def _place(text: str, order: Sequence[str]) -> int:
    return order.index(text) + 1 if len(order) > 1 and text in order[:2] else 0


def _published_row(figure: Figure, held_out: Sequence[str], columns: Sequence[str]) -> Row:
    values = [figure.values.get(domain) for domain in held_out]
    if len(columns) > len(values):
        values.append(figure.average)
    return Row(figure.algorithm, tuple(Entry(value) for value in values), source=figure.source)


def _chosen(method: Method) -> str:
    """How the runs of a method were selected in a sweep, in words; empty where they were not."""
    return " by ".join(str(method.settings[name]) for name in ("search", "selection") if name in method.settings)


def _seeds(comparison: Comparison) -> str:
    counts = sorted({cell.held_out.n for method in comparison.methods for cell in method.cells.values()})
    several = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else _count(counts[0], "seed")
    steps = sorted({int(run.result["steps"]) for run in comparison.runs if "steps" in run.result})
    networks = list(dict.fromkeys(str(run.config.get("backbone")) for run in comparison.runs))
    trained = f", {' or '.join(f'{step:,}' for step in steps)} steps" if steps else ""
    return (
        f"{several}{trained}, {' or '.join(networks)}, split {comparison.methods[0].settings.get('split', 'unknown')}."
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
