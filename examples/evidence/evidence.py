"""The comparison of docs/results.md: a small search on validation, a choice for each algorithm, and the sweep.

    python examples/evidence/evidence.py --settings examples/evidence/emoji.toml --out runs/evidence/emoji

Everything is done by `steppe bench`, so it can be stopped and given again, and a longer list of algorithms, more seeds
or more domains add to what is there. The search leaves out the first domains of the list only; what it chooses, one
set of values for an algorithm, is written to chosen.toml and taken for all domains and seeds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from steppe.benchmark.plan import read_plans
from steppe.training.results import read_result

FIXED = ("lr", "weight_decay", "batch_per_domain", "dropout")
"""The same for every algorithm, so that nothing but the algorithm differs."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    settings: Path
    """A TOML file as `steppe bench --config` takes it."""
    out: Path
    """Where the runs are kept."""
    search_held_out: tuple[str, ...]
    """The domains that the search leaves out, one after the other."""
    draws: int = 4
    """Draws of an algorithm's own hyper-parameters; the first is the published values."""
    jobs: int = 2
    """Runs at the same time."""


def bench(options: Options, out: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "steppe", "bench", "--config", str(options.settings), "--out", str(out)]
    subprocess.run([*command, "--executor", "local", "--jobs", str(options.jobs), *arguments], check=False)


def search(options: Options) -> Path:
    """The runs of the search: seed 0."""
    out = options.out / "search"
    held_out = ("--held-out", *options.search_held_out)
    bench(options, out, "--seeds", "1", "--draws", str(options.draws), "--fixed", *FIXED, *held_out)
    return out


def choose(store: Path, held_out: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Algorithm → the values whose runs have the best validation accuracy, mean over the domains left out.

    A draw that failed for one of them is passed over; of equal ones the first is taken, so the published values.
    """
    plans, _ = read_plans(store)
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    values: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for plan in plans:
        for cell, draws in plan.cells.items():
            for number, draw in draws.items():
                values[cell.algorithm][number] = dict(draw.values)
                result = read_result(store / draw.run)
                if cell.held_out in held_out and result is not None:
                    found[cell.algorithm][number].append(result.content["validation_accuracy"])
    chosen = {}
    for algorithm, scores in found.items():
        whole = {number: statistics.fmean(each) for number, each in scores.items() if len(each) == len(held_out)}
        if whole:
            chosen[algorithm] = values[algorithm][min(whole, key=lambda number: (-whole[number], number))]
    return chosen


def main(options: Options) -> None:
    chosen = choose(search(options), options.search_held_out)
    tables = [
        "\n".join([f'["{algorithm}"]', *(f'"{name}" = {json.dumps(value)}' for name, value in own.items())])
        for algorithm, own in chosen.items()
    ]
    path = options.out / "chosen.toml"
    path.write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    print(f"chosen on validation: {path}")
    algorithms = tomllib.loads(options.settings.read_text(encoding="utf-8"))["algorithms"]
    for algorithm in algorithms:
        if algorithm not in chosen:
            print(f"{algorithm}: no draw finished for every domain; it is left out")
            continue
        hyper = [f"{name}={value}" for name, value in chosen[algorithm].items()]
        bench(options, options.out / "sweep", "--algorithms", algorithm, *(["--hyper", *hyper] if hyper else []))
    report = [sys.executable, "-m", "steppe", "report", str(options.out / "sweep")]
    subprocess.run(report, check=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
