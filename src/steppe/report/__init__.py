"""Reports on a store of runs: statistics over seeds, the table in the terminal, one self-contained HTML page."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steppe.report.page import write_page as write_page
    from steppe.report.runs import Problem as Problem
    from steppe.report.runs import Run as Run
    from steppe.report.runs import Runs as Runs
    from steppe.report.runs import UnreadableFile as UnreadableFile
    from steppe.report.runs import load_runs as load_runs
    from steppe.report.statistics import Summary as Summary
    from steppe.report.statistics import summarise as summarise
    from steppe.report.terminal import print_table as print_table

# The store is read without the libraries that draw; so nothing is imported before it is asked for.
_HOMES = {
    "load_runs": "runs",
    "Run": "runs",
    "Runs": "runs",
    "Problem": "runs",
    "UnreadableFile": "runs",
    "summarise": "statistics",
    "Summary": "statistics",
    "print_table": "terminal",
    "write_page": "page",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'steppe.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steppe.report.{_HOMES[name]}"), name)
