"""The comparison of docs/results.md: a pilot and a small search on validation, a choice for each algorithm, the sweep.

    steppe data fetch mnist
    python examples/evidence/evidence.py --settings examples/evidence/emoji.toml --out runs/evidence/emoji
    python examples/evidence/evidence.py --settings examples/evidence/rotated.toml --out runs/evidence/rotated
    python examples/evidence/evidence.py --settings examples/evidence/colored.toml --out runs/evidence/colored
    steppe bench --config examples/evidence/full.toml --out runs/evidence/full

Everything is done by `steppe bench`, so it can be stopped and given again, and a longer list of algorithms, more seeds
or more domains add to what is there. All of it goes by the validation pictures of seed 0, with the domains of
--search-held-out left out:

1. The pilot trains ERM at a third of the learning rate, at it and at three times it; the best goes to all algorithms.
2. The search tries the published values and random draws of each algorithm's own hyper-parameters, but for those in
   `fixed_hyper`, whose published values cannot work in so few steps.
3. The choice is the published values unless a draw leads by more than a margin (choosing.py); it is written to
   chosen.toml and serves all domains and seeds of the sweep. Runs that the search has made already are copied.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from choosing import Choice, choose

from steppe.benchmark.protocol import jobs, leave_one_domain_out
from steppe.benchmark.store import Store
from steppe.cli.commands import Bench
from steppe.cli.parse import parse as parse_command
from steppe.data import open_dataset
from steppe.training.config import PLAIN_BACKBONE, Settings
from steppe.training.recipes import parse
from steppe.training.results import read_result

FIXED = ("lr", "weight_decay", "batch_per_domain", "dropout")
"""The same for every algorithm, so that nothing but the algorithm differs."""

PILOT = (1.0, 1 / 3, 3.0)
"""What the learning rate of the settings is multiplied by; of equal ones the first is taken."""

SEARCHED = {
    "emoji": ("line", "fluent"),
    "emoji-full": ("line", "fluent"),
    "rotated-mnist-6000": ("0",),
    "colored-mnist-6000": ("+90%",),
}
"""Data set → the domains that the search leaves out, one after the other."""

SOME_FAILED = 1


@dataclass(frozen=True)
class Options:
    """What to run."""

    settings: Path
    """A TOML file as `steppe bench --config` takes it, with one data set."""
    out: Path
    """Where the runs are kept."""
    search_held_out: tuple[str, ...] = ()
    """The domains that the search leaves out, one after the other; not given: those of SEARCHED."""
    draws: int = 3
    """Draws of an algorithm's own hyper-parameters; the first is the published values."""
    jobs: int = 2
    """Runs at the same time."""


def main(options: Options) -> None:
    """Pilot, search, choice and sweep."""
    asked = command(options.settings)
    held_out = options.search_held_out or SEARCHED.get(asked.dataset[0], ())
    if len(asked.dataset) != 1 or not held_out:
        raise SystemExit("give settings with one data set, and --search-held-out with domains of it")
    lr = pilot(options, held_out[0])
    lines = [f"lr = {lr!r}"]
    for algorithm in (parse(name).name for name in asked.algorithms):
        fixed = fixed_hyper(algorithm, asked.settings)
        choice = search(options, algorithm, fixed, lr, held_out)
        if choice is None:
            print(f"{algorithm}: no draw finished for every domain; it is left out")
            continue
        values = {**fixed, **choice.values}
        lines += ["", f'["{algorithm}"]', f"# draw {choice.draw}: {100 * choice.accuracy:.1f} % in validation"]
        lines += [f'"{name}" = {json.dumps(value)}' for name, value in values.items()]
        (options.out / "chosen.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        copy_runs(options.out / "search", options.out / "sweep", choice.runs)
        bench(options, "sweep", *one(algorithm, lr, values))
    report = [sys.executable, "-m", "steppe", "report", str(options.out / "sweep")]
    subprocess.run(report, check=True)


def fixed_hyper(algorithm: str, settings: Settings) -> dict[str, int | float]:
    """Hyper-parameters of an algorithm whose published values are made for thousands of steps, with values for few."""
    table: dict[str, int | float] = {
        "vrex.anneal_steps": max(1, settings.steps // 10),
        "swad.n_converge": 2,
        "swad.n_tolerance": 3,
        "lookahead.k": 5,
        "lookahead.alpha": 0.5,
    }
    if settings.backbone != PLAIN_BACKBONE and not settings.frozen_batch_norm:
        table |= {"swad.bn_batches": 50, "lookahead.bn_batches": 50}
    recipe = parse(algorithm)
    return {name: value for name, value in table.items() if recipe.takes(name)}


def pilot(options: Options, held_out: str) -> float:
    """The learning rate at which ERM, seed 0, has the best validation accuracy; of equal ones the middle one first."""
    base = command(options.settings)
    scores: dict[float, float] = {}
    for factor in PILOT:
        lr = base.settings.lr if factor == 1 else float(f"{base.settings.lr * factor:.3g}")
        asked = bench(options, "pilot", *one("erm", lr, {}), "--seeds", "1", "--held-out", held_out)
        dataset = open_dataset(asked.dataset[0])
        configs = leave_one_domain_out(
            dataset, algorithms=["erm"], held_out=[held_out], seeds=1, settings=asked.settings
        )
        (job,) = jobs(Store(options.out / "pilot"), dataset, configs)
        result = read_result(job.directory)
        if result is not None:  # one that diverged has failed
            scores[lr] = result.content["validation_accuracy"]
    if not scores:
        raise SystemExit("ERM failed at every learning rate of the pilot")
    told = ", ".join(f"{lr:g}: {100 * score:.1f} %" for lr, score in sorted(scores.items()))
    best = max(scores, key=lambda lr: scores[lr])
    print(f"pilot, ERM in validation by learning rate: {told}; {best:g} is taken")
    return best


def search(
    options: Options, algorithm: str, fixed: Mapping[str, Any], lr: float, held_out: tuple[str, ...]
) -> Choice | None:
    """The search of one algorithm, seed 0, and what it chooses."""
    draws = ("--draws", str(options.draws), "--fixed", *FIXED)
    asked = bench(options, "search", *one(algorithm, lr, fixed), "--seeds", "1", *draws, "--held-out", *held_out)
    return choose(options.out / "search", asked.settings, algorithm, held_out)


def one(algorithm: str, lr: float, values: Mapping[str, Any]) -> list[str]:
    """The arguments for one algorithm."""
    hyper = [f"{name}={value}" for name, value in values.items()]
    return ["--algorithms", algorithm, "--lr", repr(lr), *(["--hyper", *hyper] if hyper else [])]


def command(settings: Path, *arguments: str) -> Bench:
    """What `steppe bench` understands by these arguments."""
    understood = parse_command(["bench", "--config", str(settings), *arguments])
    assert isinstance(understood, Bench)
    return understood


def bench(options: Options, store: str, *arguments: str) -> Bench:
    """Run `steppe bench` with a store below --out. That a run failed is said in its table; anything else ends this."""
    where = ("--out", str(options.out / store), "--executor", "local", "--jobs", str(options.jobs))
    words = ["bench", "--config", str(options.settings), *where, *arguments]
    done = subprocess.run([sys.executable, "-m", "steppe", *words], check=False)
    if done.returncode not in (0, SOME_FAILED):
        raise SystemExit(done.returncode)
    return command(options.settings, *where, *arguments)


def copy_runs(source: Path, target: Path, runs: tuple[Path, ...]) -> None:
    """Copy finished runs from a store to another, where a run with the same config has the same place."""
    for run in runs:
        if not (target / run / "result.json").exists():
            part = target / run.parent / f".{run.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source / run, part, ignore=shutil.ignore_patterns(".*"))
            shutil.rmtree(target / run, ignore_errors=True)
            part.rename(target / run)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
