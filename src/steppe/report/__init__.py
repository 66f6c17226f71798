"""Reports on a store of runs: statistics over seeds, the table in the terminal, one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steppe.lazy import lazy_names

if TYPE_CHECKING:
    from steppe.report.frame import run_frame as run_frame
    from steppe.report.page import write_page as write_page
    from steppe.report.plans import open_runs as open_runs
    from steppe.report.runs import Problem as Problem
    from steppe.report.runs import Run as Run
    from steppe.report.runs import Runs as Runs
    from steppe.report.runs import UnreadableFile as UnreadableFile
    from steppe.report.runs import load_runs as load_runs
    from steppe.report.selected import Choice as Choice
    from steppe.report.selected import Selected as Selected
    from steppe.report.selected import load_selected as load_selected
    from steppe.report.selected import select as select
    from steppe.report.significance import family as family
    from steppe.report.statistics import Summary as Summary
    from steppe.report.statistics import summarise as summarise
    from steppe.report.terminal import print_choices as print_choices
    from steppe.report.terminal import print_selections as print_selections
    from steppe.report.terminal import print_table as print_table

# The store is read without the libraries that draw; so nothing is imported before it is asked for.
_HOMES: dict[str, tuple[str, ...]] = {
    "runs": ("load_runs", "Run", "Runs", "Problem", "UnreadableFile"),
    "plans": ("open_runs",),
    "frame": ("run_frame",),
    "statistics": ("summarise", "Summary"),
    "selected": ("load_selected", "select", "Selected", "Choice"),
    "significance": ("family",),
    "terminal": ("print_table", "print_choices", "print_selections"),
    "page": ("write_page",),
}

__all__ = [name for names in _HOMES.values() for name in names]

__getattr__ = lazy_names(__name__, _HOMES)
