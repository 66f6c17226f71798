"""What `steppe report` does; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from steppe.cli.report_commands import Report
from steppe.errors import SteppeError
from steppe.report.plans import OpenedRuns, open_selected
from steppe.training.files import make_directory, write_atomically
from steppe.training.progress import plain_console

if TYPE_CHECKING:
    from steppe.report.published import Published
    from steppe.report.statistics import Comparison, Summary
    from steppe.report.tables import Table


def run_report(options: Report) -> int:
    """The table and the page of everything in a store, or its tables for a paper."""
    found = open_selected(options.runs, options.only, options.selection)
    from steppe.report.statistics import summarise  # after the store was found: it takes a while to import

    summary = summarise(found.runs)
    other = None
    if options.against is not None:
        other = summarise(open_selected(options.against, options.only, options.selection).runs)
    if options.format == "page":
        _page(options, found, summary, other)
    else:
        _tables(options, summary, other)
    return 0


def _page(options: Report, found: OpenedRuns, summary: Summary, other: Summary | None) -> None:
    from steppe.report.page import NAME, Extras, write_page
    from steppe.report.statistics import summarise
    from steppe.report.terminal import print_choices, print_plain, print_table

    console: Console = plain_console()
    further = _further(options, summary, other, every=False)  # first: it complains of a method that is not there
    extras = Extras(
        published=options.published,
        unit=options.pairs,
        baseline=options.baseline,
        against=other,
        drawn=summarise(found.everything) if found.choices else None,
    )
    folder = options.runs if options.runs.is_dir() else options.runs.parent
    out = folder / NAME if options.out is None else options.out
    page = write_page(summary.runs.root or folder, out, summary=summary, extras=extras)
    print_table(summary, console)
    print_choices(found.choices, console)
    for table in further:
        console.print()
        print_plain(table, console)
    console.print(f"\npage: {page}", soft_wrap=True)


def _tables(options: Report, summary: Summary, other: Summary | None) -> None:
    from steppe.report.tables import dataset_table

    if not summary.runs:
        raise SteppeError(f"{options.runs}: no finished runs")
    tables = [
        dataset_table(comparison, options.metric, _published(options, comparison)) for comparison in summary.comparisons
    ]
    text = _writer(options.format)([*tables, *_further(options, summary, other, every=True)])
    if options.out is None:
        print(text, end="")
        return
    make_directory(options.out.parent)
    write_atomically(options.out, lambda file: file.write(text.encode()))
    plain_console().print(f"{options.out}", soft_wrap=True)


def _further(options: Report, summary: Summary, other: Summary | None, *, every: bool) -> list[Table]:
    """The tables over all data sets: those that say something here, or that were asked for."""
    from steppe.report.against import against, against_table
    from steppe.report.significance import family
    from steppe.report.tables import overall_table, table_of_tests

    found: list[Table] = []
    comparisons = summary.comparisons
    if len(comparisons) > 1 or (every and any(len(item.methods) > 1 for item in comparisons)):
        found.append(overall_table(comparisons))
    tests = family(comparisons, unit=options.pairs, against=options.baseline)
    if tests.pairs and (every or options.baseline is not None):
        found.append(table_of_tests(tests))
    if other is not None:
        found.append(against_table(against(summary, other), (str(options.runs), str(options.against))))
    return found


def _published(options: Report, comparison: Comparison) -> Published | None:
    if not options.published or options.metric == "all":
        return None
    from steppe.report.published import published

    return published(comparison, options.metric)


def _writer(form: str) -> Callable[[Sequence[Table]], str]:
    if form == "latex":
        from steppe.report.latex import latex

        return latex
    if form == "csv":
        from steppe.report.delimited import delimited

        return delimited
    from steppe.report.markdown import markdown

    return markdown
