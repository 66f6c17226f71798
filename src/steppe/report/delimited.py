"""Tables as CSV: one line a figure, with numbers that are not rounded, for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from steppe.report.tables import Table

HEADS = ("table", "row", "column", "mean", "standard_error", "seeds", "text", "place", "source")


def delimited(tables: Sequence[Table]) -> str:
    """A line for each cell that holds something.

    ``mean`` and ``standard_error`` are fractions, not percentages; ``text`` is what a cell without a mean says (a rank,
    an interval); ``place`` is 1 for the best of the column and 2 for the second best (of tests, 1 where the
    corrected p is at most 0.05); ``source`` names where a figure was published, and is empty for own runs.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADS)
    for table in tables:
        for row in (*table.rows, *table.published):
            for column, entry in zip(table.columns, row.entries, strict=True):
                value = entry.value
                if value is None and not entry.text:
                    continue
                numbers = ("", "", "") if value is None else (value.mean, _plain(value.error), _plain(value.n or None))
                place = entry.place or ""
                writer.writerow([table.key, row.name, column, *numbers, entry.text, place, row.source])
    return buffer.getvalue()


def _plain(value: float | None) -> object:
    return "" if value is None else value
