"""Tables in Markdown, as GitHub and Pandoc read them: the best in bold, the second best in italics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from steppe.report.ranking import spread
from steppe.report.tables import Entry, Row, Table

NONE = "–"


def markdown(tables: Sequence[Table]) -> str:
    """The tables, one after the other, each with its caption and its notes."""
    return "\n".join(_table(table) for table in tables)


def escape(text: str) -> str:
    """The text with everything that Markdown would read as markup taken literally, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|~$#])", r"\\\1", " ".join(text.split()))


def _table(table: Table) -> str:
    sourced = bool(table.published)
    heads = [table.heading, *table.columns, *(["source"] if sourced else [])]
    lines = [f"**{escape(table.caption)}**", "", _line(escape(head) for head in heads)]
    lines.append(_line([":---", *["---:"] * len(table.columns), *([":---"] if sourced else [])]))
    lines += [_row(row, sourced) for row in (*table.rows, *table.published)]
    if table.notes:
        lines += ["", *(f"{escape(note)}  " for note in table.notes)]
    return "\n".join(lines) + "\n"


def _row(row: Row, sourced: bool) -> str:
    cells = [_published(row) if row.source else escape(row.name), *(_entry(entry) for entry in row.entries)]
    return _line([*cells, *([escape(row.source) if row.source else "these runs"] if sourced else [])])


def _published(row: Row) -> str:
    return f"{escape(row.name)} (published)"


def _entry(entry: Entry) -> str:
    text = spread(entry.value) if entry.value is not None else escape(entry.text)
    if not text:
        return NONE
    return {1: f"**{text}**", 2: f"*{text}*"}.get(entry.place, text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
