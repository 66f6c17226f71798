"""What `steppe report` does; needs no torch."""

from __future__ import annotations

from steppe.cli.commands import Report
from steppe.report.runs import load_runs
from steppe.training.progress import plain_console


def run_report(options: Report) -> int:
    """The table and the page of everything in a store."""
    console = plain_console()
    runs = load_runs(options.runs)
    from steppe.report import print_table, summarise, write_page  # after the store was found: they take a second

    page = write_page(options.runs, options.out)
    print_table(summarise(runs), console)
    console.print(f"\npage: {page}", soft_wrap=True)
    return 0
