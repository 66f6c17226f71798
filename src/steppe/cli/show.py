"""What `steppe report` does; needs no torch."""

from __future__ import annotations

from steppe.cli.commands import Report
from steppe.report.selected import load_selected
from steppe.training.progress import plain_console


def run_report(options: Report) -> int:
    """The table and the page of everything in a store."""
    console = plain_console()
    selected = load_selected(options.runs, options.selection)
    # After the store was found: these take a second.
    from steppe.report import print_choices, print_table, summarise, write_page

    page = write_page(options.runs, options.out, selection=options.selection)
    print_table(summarise(selected.runs), console)
    print_choices(selected.choices, console)
    console.print(f"\npage: {page}", soft_wrap=True)
    return 0
