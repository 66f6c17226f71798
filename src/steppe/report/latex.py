r"""Tables in LaTeX with booktabs: the best in bold, the second best underlined. They compile with pdfLaTeX as they are.

A file holds ``table`` environments and needs ``\usepackage{booktabs}`` in the preamble, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from steppe.report.ranking import percent
from steppe.report.tables import Entry, Row, Table

_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \\textquotedbl is not in the encoding that a bare document has
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "→": r"$\to$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "√": r"$\surd$",
    "°": r"$^\circ$",
    "\N{NO-BREAK SPACE}": "~",
    **{letter: rf"$\{name}$" for letter, name in zip("αβγδεηθλμρσ", (
        "alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "lambda", "mu", "rho", "sigma",
    ), strict=True)},
}  # fmt: skip


def latex(tables: Sequence[Table]) -> str:
    """The tables, one environment each."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_table(table) for table in tables)


def escape(text: str) -> str:
    """The text as pdfLaTeX prints it literally, on one line.

    Letters of the Latin alphabet with accents are left to LaTeX, which knows them; any other character that it does not
    know is written by its code point, U+1F600, rather than left to break the document.
    """
    return "".join(_CHARACTERS.get(character, _known(character)) for character in " ".join(text.split()))


def _known(character: str) -> str:
    code = ord(character)
    if character.isascii() or 0xC0 <= code <= 0x17F:
        return character if character.isprintable() else ""
    return f"U+{code:04X}"


def _table(table: Table) -> str:
    width = len(table.columns) + 1
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.caption)}}}",
        rf"\label{{tab:{_label(table.key)}}}",
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        _line([escape(table.heading), *map(escape, table.columns)]),
        r"\midrule",
        *(_row(row) for row in table.rows),
    ]
    if table.published:
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{published}}}} \\"]
        lines += [_row(row) for row in table.published]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        lines += ["", r"\smallskip", r"{\footnotesize " + " ".join(map(escape, table.notes)) + r"\par}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _row(row: Row) -> str:
    name = escape(row.name) + (rf" {{\footnotesize {escape(row.source)}}}" if row.source else "")
    # After the end of a line LaTeX would take these for an argument of it.
    guard = "{}" if name.startswith(("[", "*")) else ""
    return _line([guard + name, *map(_entry, row.entries)])


def _entry(entry: Entry) -> str:
    if entry.value is not None:
        mean = _marked(percent(entry.value.mean), entry.place)
        return mean if entry.value.error is None else rf"{mean} {{\scriptsize $\pm$ {percent(entry.value.error)}}}"
    return _marked(escape(entry.text), entry.place) if entry.text else "--"


def _marked(text: str, place: int) -> str:
    return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(place, text)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _label(key: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or "table"
