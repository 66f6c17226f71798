"""What it costs to do a sweep's runs in other processes, and what it gains.

    python benchmarks/executors.py                        # both parts: some ten minutes on two cores
    python benchmarks/executors.py --parts overhead --pairs 10

Two tables, of runs on EmojiStyles with one thread each, the workers warm (each has done a run before anything counts):

- *scaling*: seconds of a sweep in this process and with one local worker, over those with two. 2 is ideal.
- *overhead*: seconds that a run takes longer with a single warm worker than in this process: (worker − process) / runs,
  for a local process and for a Ray actor, the median of interleaved pairs of whole sweeps with its 95 % bootstrap
  interval. The runs are short, so that it can be seen.

Beside them, once: seconds until a first worker is ready.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from measure import interleaved, setting
from scipy.stats import bootstrap

from steppe.benchmark.execution import Execution, make_executor
from steppe.benchmark.executor import Executor
from steppe.benchmark.protocol import jobs, leave_one_domain_out
from steppe.benchmark.store import Store
from steppe.data import open_dataset
from steppe.training import Machine, Settings
from steppe.training.progress import Silent

SHORT = Settings(
    backbone="test_resnet", pretrained=False, frozen_batch_norm=False, image_size=32, batch_per_domain=4, steps=10
)
LONG = replace(SHORT, backbone="resnet18", image_size=64, batch_per_domain=8, steps=12)
MACHINE = Machine(device="cpu", threads=1)
DATASET = open_dataset("emoji")
NUMBERS = itertools.count()


def sweeping(executor: Executor, settings: Settings, runs: int, stores: Path) -> Callable[[], None]:
    """Does a sweep of so many runs in a new store at each call."""
    configs = leave_one_domain_out(
        DATASET,
        algorithms=["erm"],
        held_out=["line"],
        seeds=runs,
        settings=replace(settings, eval_every=settings.steps),
    )

    def sweep() -> None:
        planned = jobs(Store(stores / str(next(NUMBERS))), DATASET, configs)
        assert all(outcome.status == "finished" for outcome in executor.run(planned))

    return sweep


def ready(stack: ExitStack, stores: Path, **options: object) -> tuple[Executor, float]:
    """An executor whose workers have each done a run, and the seconds until the first had."""
    execution = Execution(**options)  # type: ignore[arg-type]
    executor = stack.enter_context(make_executor(execution, DATASET, MACHINE, Silent(), "benchmark"))
    start = time.perf_counter()
    sweeping(executor, SHORT, 1, stores / "first")()
    seconds = time.perf_counter() - start
    sweeping(executor, LONG, 2 * (execution.jobs or 1), stores / "warm")()
    return executor, seconds


def scaling(stores: Path, pairs: int, runs: int) -> None:
    """The first table."""
    with ExitStack() as stack:
        here, _ = ready(stack, stores)
        one, _ = ready(stack, stores, executor="local", jobs=1)
        two, _ = ready(stack, stores, executor="local", jobs=2)
        print(f"\n{runs} runs of {LONG.backbone} at {LONG.image_size} px, {LONG.steps} steps, one thread each\n")
        print("| a sweep with | its seconds over those with two workers [95 %] | seconds | with two | pairs |")
        print("| --- | --- | --- | --- | --- |")
        for name, executor in (("this process", here), ("one worker", one)):
            ratio = interleaved(
                sweeping(executor, LONG, runs, stores), sweeping(two, LONG, runs, stores), pairs=pairs, warmup=1
            )
            print(f"| {name} | {ratio} | {ratio.a_median:.1f} | {ratio.b_median:.1f} | {pairs} |", flush=True)


def overhead(stores: Path, pairs: int, runs: int) -> None:
    """The second table."""
    print(f"\n{runs} runs of {SHORT.backbone} at {SHORT.image_size} px, {SHORT.steps} steps\n")
    print(
        "| worker | seconds a run takes longer than in this process [95 %] | a run here, s | first after, s | pairs |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name in ("local", "ray"):
        with ExitStack() as stack:
            here, _ = ready(stack, stores)
            worker, first = ready(stack, stores, executor=name, jobs=1)
            calls = {"here": sweeping(here, SHORT, runs, stores), "there": sweeping(worker, SHORT, runs, stores)}
            seconds: dict[str, list[float]] = {"here": [], "there": []}
            for pair in range(pairs):
                for place in sorted(calls, reverse=bool(pair % 2)):
                    start = time.perf_counter()
                    calls[place]()
                    seconds[place].append((time.perf_counter() - start) / runs)
        longer = np.array(seconds["there"]) - np.array(seconds["here"])
        interval = bootstrap((longer,), np.median, n_resamples=5000, rng=0, method="percentile").confidence_interval
        told = f"{np.median(longer):.3f} [{interval.low:.3f}, {interval.high:.3f}]"
        print(f"| {name} | {told} | {np.median(seconds['here']):.2f} | {first:.1f} | {pairs} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["scaling", "overhead"], default=["scaling", "overhead"])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--runs", type=int, default=4, help="runs of a sweep")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(f"`{shlex.join(['python', *sys.argv])}`\n\n{setting('timm', 'ray')}")
    print(f"load average before the start {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as scratch:
        for part, measure in (("scaling", scaling), ("overhead", overhead)):
            if part in arguments.parts:
                measure(Path(scratch) / part, arguments.pairs, arguments.runs)


if __name__ == "__main__":
    main()
