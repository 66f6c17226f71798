"""The table in the terminal: made to be read at 80 columns, in several blocks where one would be too wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from steppe.report.ranking import Answer, answer, percent, seconds, spread
from steppe.report.runs import Problem, Runs
from steppe.report.selected import Choice
from steppe.report.settings import plain
from steppe.report.statistics import BASELINE, Comparison, Estimate, Method, Summary
from steppe.report.tables import Entry
from steppe.report.tables import Table as Plain
from steppe.training.words import Value

GAP = 2  # spaces between two columns: one of padding and the box's own
LONGEST_NAME = 19  # a method's name longer than this is broken over lines


@dataclass(frozen=True)
class Column:
    """A column: its heading, a text for each method, and which rows are the best in it."""

    heading: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]

    @property
    def width(self) -> int:
        heading = max((cell_len(word) for word in self.heading.split()), default=0)
        return max(heading, *(cell_len(cell) for cell in self.cells))


def print_table(summary: Summary, console: Console) -> None:
    """Prints each data set's table, its answer and what must be said with it; then what else the store holds."""
    for number, comparison in enumerate(summary.comparisons):
        if number:
            console.print()
        _print_comparison(comparison, console)
    for line in store_notes(summary.runs):
        console.print(Text(line, style="yellow"))


def print_plain(table: Plain, console: Console) -> None:
    """Prints a table of another kind: over data sets, tests, two stores; in lists where it is too wide for columns."""
    console.print(Text(_wrapped(table.caption, console.width), style="bold"))
    console.print()
    heads = [table.heading, *table.columns]
    lines = [[row.name, *(_entry(entry) for entry in row.entries)] for row in table.rows]
    widths = [max(map(cell_len, column)) for column in zip(heads, *lines, strict=True)]
    if sum(widths) + GAP * len(widths) <= console.width:
        drawn = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        for number, head in enumerate(heads):
            drawn.add_column(Text(head), justify="right" if number else "left", no_wrap=True)
        for row, line in zip(table.rows, lines, strict=True):
            styles = ["", *("bold" if entry.place == 1 else "" for entry in row.entries)]
            drawn.add_row(*(Text(cell, style=style) for cell, style in zip(line, styles, strict=True)))
        console.print(drawn)
    else:
        for line in lines:
            console.print(Text(line[0]))
            told = ", ".join(f"{head} {cell}" for head, cell in zip(table.columns, line[1:], strict=True))
            console.print(Padding(Text(_wrapped(told, console.width - 2)), (0, 0, 0, 2), expand=False))
    for note in table.notes:
        console.print(Padding(Text(_wrapped(note, console.width - 2)), (0, 0, 0, 2), expand=False))


def store_notes(runs: Runs, root: Path | None = None) -> list[str]:
    """What the store holds besides finished runs: unfinished and failed ones, unreadable files.

    Paths are as they were found, or as seen from ``root``.
    """

    def lines(title: str, problems: Sequence[Problem]) -> list[str]:
        shown = [str(problem) if root is None else problem.below(root) for problem in problems]
        return [title, *(f"  {line}" for line in shown)] if shown else []

    notes = list(runs.notes) if runs else [*runs.notes, "No finished runs."]
    if runs.unfinished:
        notes.append(f"{_count(len(runs.unfinished), 'run')} not finished; the same command continues.")
    if runs.pruned:
        notes.append(f"{_count(len(runs.pruned), 'run')} pruned by a search, and counted nowhere.")
    notes += lines(f"{_count(len(runs.failures), 'run')} failed:", runs.failures)
    notes += lines("Could not be read, and is in no number above:", runs.problems)
    return notes


def _print_comparison(comparison: Comparison, console: Console) -> None:
    result = answer(comparison)
    title = Text.assemble(("Accuracy in % on the domain never seen in training", "bold"), f"   {comparison.name}")
    console.print(title)
    for how in dict.fromkeys(run.searched.text for run in comparison.runs if run.searched):
        console.print(Text(_wrapped(how, console.width)))
    names = [method.name for method in comparison.methods]
    for block in _blocks(names, _columns(comparison), console.width):
        console.print()
        console.print(_table(comparison.methods, block, result))
    console.print()
    console.print(Text(_wrapped(result.headline, console.width), style="bold"))
    for caveat in result.caveats:
        console.print(Padding(Text(_wrapped(caveat, console.width - 2)), (0, 0, 0, 2), expand=False))


def print_choices(choices: Sequence[Choice], console: Console) -> None:
    """Prints which draw of hyper-parameters and which checkpoint each number of the tables comes from."""
    searched = [choice for choice in choices if choice.values or choice.of > 1]
    for dataset, how in dict.fromkeys((choice.cell.dataset, choice.how) for choice in searched):
        console.print(
            Text.assemble(("\nChosen hyper-parameters", "bold"), f"   {dataset}\n{_wrapped(how, console.width)}")
        )
        table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column("", max_width=LONGEST_NAME, overflow="fold")
        for heading in ("held out", "seed", "draw", "step", "%"):
            table.add_column(heading, justify="left" if heading == "held out" else "right", overflow="fold")
        table.add_column("", overflow="fold")
        for choice in sorted(
            (choice for choice in searched if (choice.cell.dataset, choice.how) == (dataset, how)),
            key=lambda choice: (choice.cell.algorithm, choice.cell.held_out, choice.cell.seed),
        ):
            cell = choice.cell
            row = (cell.algorithm, cell.held_out, cell.seed, choice.draw, choice.step)
            drawn = ", ".join(f"{name} {_value(value)}" for name, value in choice.values.items()) or "as given"
            table.add_row(*(Text(str(one)) for one in (*row, percent(choice.run.held_out_accuracy), drawn)))
        console.print(table)


def print_selections(summaries: Mapping[str, Summary], console: Console) -> None:
    """Prints the averages of several selections side by side: selection, in words → its summary."""
    names = [comparison.name for summary in summaries.values() for comparison in summary.comparisons]
    for name in dict.fromkeys(names):
        found = {
            title: {method.name: method for one in summary.comparisons if one.name == name for method in one.methods}
            for title, summary in summaries.items()
        }
        console.print(Text(f"\nBy the rule of selection, average over the held-out domains   {name}", style="bold"))
        table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column("", max_width=LONGEST_NAME, overflow="fold")
        for title in found:
            table.add_column(Text(title), justify="right", overflow="fold", max_width=20)
        for method in dict.fromkeys(method for methods in found.values() for method in methods):
            averages = [methods[method].average if method in methods else None for methods in found.values()]
            table.add_row(Text(method), *(Text("–" if one is None else spread(one)) for one in averages))
        console.print(table)


def _value(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else plain(value)


def _wrapped(sentence: str, width: int) -> str:
    """The sentence in lines; unlike rich's own wrapping, never broken at a non-breaking space."""
    return textwrap.fill(sentence, max(width, 1), break_on_hyphens=False)


def _columns(comparison: Comparison) -> list[list[Column]]:
    """The columns in groups that stay side by side: the accuracies one by one, what qualifies them together."""
    methods = comparison.methods
    groups = []
    for domain in comparison.held_out:
        groups.append([_accuracies(domain, [_held_out(method, domain) for method in methods])])
    if len(comparison.held_out) > 1:
        groups.append([_accuracies("average", [method.average for method in methods])])
    groups.append([_accuracies("in-domain", [method.average_in_domain for method in methods])])
    groups.append(
        [
            _accuracies("all pictures", [method.average_everything for method in methods]),
            _plain("s/step", [_seconds(method) for method in methods]),
            _plain("seeds", [method.seeds for method in methods]),
        ]
    )
    return groups


def _held_out(method: Method, domain: str) -> Estimate | None:
    cell = method.cells.get(domain)
    return cell.held_out if cell else None


def _accuracies(heading: str, estimates: Sequence[Estimate | None]) -> Column:
    shown = ["–" if item is None else spread(item) for item in estimates]
    means = [None if item is None else float(percent(item.mean)) for item in estimates]
    top = max((mean for mean in means if mean is not None), default=None)
    several = len({mean for mean in means if mean is not None}) > 1
    return Column(heading, tuple(shown), tuple(several and mean is not None and mean == top for mean in means))


def _entry(entry: Entry) -> str:
    return spread(entry.value) if entry.value is not None else entry.text or "–"


def _plain(heading: str, cells: Sequence[str]) -> Column:
    return Column(heading, tuple(cells), (False,) * len(cells))


def _seconds(method: Method) -> str:
    if method.times_baseline is None or method.algorithm == BASELINE:
        return seconds(method.seconds_per_step)
    return f"{seconds(method.seconds_per_step)} ({method.times_baseline:.2f}×)"


def _blocks(names: Sequence[str], groups: Sequence[Sequence[Column]], width: int) -> list[list[Column]]:
    """The columns divided, in order, so that each part fits into ``width`` beside the methods' names."""
    room = width - min(max(cell_len(name) for name in names), LONGEST_NAME) - 1
    blocks: list[list[Column]] = [[]]
    for group in groups:
        parts = [group] if _width(group) <= room else [[column] for column in group]
        for part in parts:
            if blocks[-1] and _width(blocks[-1]) + _width(part) > room:
                blocks.append([])
            blocks[-1].extend(part)
    return blocks


def _width(columns: Sequence[Column]) -> int:
    return sum(GAP + column.width for column in columns)


def _table(methods: Sequence[Method], columns: Sequence[Column], result: Answer) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", max_width=LONGEST_NAME, overflow="fold")
    for column in columns:
        table.add_column(Text(column.heading), justify="right", min_width=column.width, overflow="fold")
    for row, method in enumerate(methods):
        name = Text(method.name, style="bold" if method in result.best else "")
        cells = [Text(column.cells[row], style="bold" if column.best[row] else "") for column in columns]
        table.add_row(name, *cells)
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
