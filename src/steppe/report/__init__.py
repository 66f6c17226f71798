"""Reports on a store of runs: statistics over seeds, the table in the terminal, one self-contained HTML page."""

from __future__ import annotations

from steppe.report.page import write_page
from steppe.report.runs import Problem, Run, Runs, UnreadableFile, load_runs
from steppe.report.statistics import Summary, summarise
from steppe.report.terminal import print_table

__all__ = [
    "load_runs",
    "Run",
    "Runs",
    "Problem",
    "UnreadableFile",
    "summarise",
    "Summary",
    "print_table",
    "write_page",
]
