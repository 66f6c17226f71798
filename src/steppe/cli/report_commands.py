"""The commands that show what runs found, and the one that searches the largest radius. Light, as all commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from steppe.benchmark.execution import Execution
from steppe.benchmark.options import SelectionName
from steppe.training.config import Settings, unset
from steppe.training.machine import Machine


@dataclass(frozen=True, kw_only=True)
class Report:
    """Show what a store of runs found.

    Prints a table and writes one HTML page that works offline: tables, tests,
    charts, pictures. Or writes the tables for a paper. Of a sweep that searched it
    shows the runs that were selected, and their hyper-parameters.

      steppe report runs
      steppe report runs --only held-out=line,noto seed=0,1,2
      steppe report runs --format latex --out table.tex
      steppe report runs --against runs-before
      steppe report runs --selection oracle
      steppe report runs/sweeps/3f2a6c       the runs of one sweep

    A test between two methods pairs what both were run on: held-out domains
    (means over seeds), or with --pairs runs every single run. p-values are
    corrected by Holm's method for the number of tests.
    """

    runs: Positional[Path]
    """The folder that steppe bench, train or demo wrote to, or one of its sweeps."""
    selection: Annotated[
        SelectionName | None, arg(metavar="RULE", help_behavior_hint="(default: each sweep's first)")
    ] = None
    """How hyper-parameters and checkpoint of a sweep are chosen: training, leave-one-out or oracle."""
    out: Annotated[Path | None, unset("report.html in that folder; a table is printed")] = None
    """Where the page or the tables go."""
    format: Literal["page", "markdown", "latex", "csv"] = "page"
    """A page to look at, or tables: Markdown, LaTeX (booktabs), or CSV, one line a figure."""
    only: Annotated[tuple[str, ...], unset("everything")] = ()
    """Which runs: KEY=VALUE[,VALUE...], with dataset, held-out, algorithm, seed or any setting (lr=5e-5)."""
    metric: Literal["held-out", "all", "in-domain"] = "held-out"
    """The accuracy in the tables of --format: on the held-out domain's test pictures, on all of it, or in domain."""
    published: bool = False
    """Show published figures of the same data set and algorithms, beside runs of full length."""
    against: Annotated[Path | None, unset("nothing")] = None
    """Another store, or a sweep: what came out differently there."""
    pairs: Literal["cells", "runs"] = "cells"
    """What a test between two methods pairs."""
    baseline: Annotated[str | None, unset("all pairs of methods, up to twelve methods")] = None
    """Test each method against this one only."""

    def run(self, command: str) -> int:
        """Print the table, write the page."""
        from steppe.cli.show import run_report

        return run_report(self)


@dataclass(frozen=True, kw_only=True)
class Radius:
    """Search the largest radius rho that still trains.

      steppe radius emoji --held-out line --image-size 64 --steps 200
      steppe radius ./my-data --held-out hospital-3 --algorithms sam disam --seeds 3

    For each algorithm a bisection of log rho over short runs. A run trains when its
    last losses on the training batches are below half of what guessing costs. Every
    run is in the store, so the same command continues where it was stopped.
    """

    dataset: Positional[str]
    """A known name (steppe data list) or a folder <domain>/<class>/<pictures>."""
    held_out: str
    """The domain that is not trained on."""
    algorithms: tuple[str, ...] = ("sam", "disam")
    """Words or sums of words that have a rho."""
    seeds: int = 1
    """Repetitions; a rho trains when it does with more than half of them."""
    low: float = 0.01
    """The smallest rho that is tried."""
    high: float = 5.0
    """The largest."""
    factor: float = 1.1
    """How close the answer is: the next rho that does not train is at most this much larger."""
    threshold: float = 0.5
    """The share of the loss of guessing that the last losses must be below."""
    out: Path = Path("runs/radius")
    """The store of runs."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=lambda: Settings(steps=300, eval_every=300))
    machine: OmitArgPrefixes[Machine] = field(default_factory=Machine)
    execution: OmitArgPrefixes[Execution] = field(default_factory=Execution)

    def run(self, command: str) -> int:
        """Train what the bisection asks for, print what it found."""
        from steppe.cli.radius import run_radius

        return run_radius(self, command)
