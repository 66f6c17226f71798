"""What `steppe radius` does."""

from __future__ import annotations

from rich.table import Table

from steppe.benchmark.execution import make_executor
from steppe.benchmark.largest_radius import largest_radius
from steppe.benchmark.radii import LargestRadius, Trial
from steppe.benchmark.store import Store
from steppe.cli.commands import open_checked, require_backbone
from steppe.cli.report_commands import Radius
from steppe.errors import SteppeError
from steppe.training.progress import Display, plain_console
from steppe.training.recipes import parse
from steppe.training.team import launched


def run_radius(options: Radius, command: str) -> int:
    """Search for one algorithm after the other; print a table."""
    if launched() > 1:
        raise SteppeError("steppe radius runs in one process: start it without torchrun")
    names = list(dict.fromkeys(parse(algorithm).name for algorithm in options.algorithms))
    require_backbone(options.settings)
    dataset = open_checked(options.dataset)
    dataset.check_domain(options.held_out)
    store = Store(options.out)
    store.create()
    console = plain_console()
    found: list[LargestRadius] = []
    with (
        Display(console) as display,
        make_executor(options.execution, dataset, options.machine, display, command) as executor,
    ):
        for name in names:

            def tried(trial: Trial, name: str = name) -> None:
                shares = ", ".join("not finite" if share is None else f"{share:.2f}" for share in trial.shares)
                verdict = "trains" if trial.trains else "does not train"
                display.say(f"{name} with rho {trial.rho:g} {verdict}: last loss over that of guessing {shares}")

            found.append(
                largest_radius(
                    dataset,
                    executor,
                    store,
                    algorithm=name,
                    held_out=options.held_out,
                    settings=options.settings,
                    seeds=options.seeds,
                    low=options.low,
                    high=options.high,
                    factor=options.factor,
                    threshold=options.threshold,
                    tried=tried,
                )
            )
    console.print(f"\nLargest rho that still trains, {dataset.name}, {options.held_out} held out:")
    console.print(_table(found))
    console.print(f"\nruns: {options.out}\ntable and page: steppe report {options.out}", soft_wrap=True)
    return 0


def _table(found: list[LargestRadius]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for heading in ("", "trains", "does not", "tried"):
        table.add_column(heading, justify="right" if heading else "left")
    for each in found:
        table.add_row(
            each.algorithm,
            "none" if each.trains is None else f"{each.trains:g}",
            "–" if each.fails is None else f"{each.fails:g}",
            str(len(each.trials)),
        )
    return table
