"""The largest radius ρ that still trains: a bisection over short runs (the DISAM paper's comparison, its figure 3).

A larger ρ means a wider search for flat ground, as long as training converges; the paper shows that DISAM can be run
with a larger one than SAM. It gives no criterion, so this one is steppe's own and stated: a run *trains* when the mean
of its training losses over the last tenth of its steps is below half of ln C, the loss of guessing among C classes. A
loss that is not finite does not train.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from steppe.benchmark.executor import Executor
from steppe.benchmark.protocol import Job, jobs
from steppe.benchmark.radii import LargestRadius, Trial, write_radius
from steppe.benchmark.store import FAILURE, Store
from steppe.data import DomainDataset
from steppe.errors import SteppeError
from steppe.training.config import RunConfig, Settings
from steppe.training.losses import NonFiniteLossError
from steppe.training.recipes import parse

DIGITS = 3
LAST = 0.1
"""The share of the steps whose losses are looked at."""


def bisect(
    trains: Callable[[float], bool], *, low: float, high: float, factor: float
) -> tuple[float | None, float | None]:
    """The largest ρ that trains and the smallest above it that does not, at most ``factor`` apart.

    Halves the interval of log ρ; every ρ has `DIGITS` significant digits, so that the same search asks for the same
    runs. If what trains is not an interval from 0 upwards (a ρ that fails below one that trains), one of its ends is
    found.

    Args:
        trains: asked for ``low``, for ``high``, and then for what lies between.

    Returns:
        ``(None, low)`` where not even ``low`` trains, ``(high, None)`` where ``high`` still does.

    Raises:
        SteppeError: not 0 < low < high < ∞, or the factor is not larger than 1.
    """
    if not 0 < low < high < math.inf:
        raise SteppeError(f"the search needs 0 < low < high, got {low:g} and {high:g}")
    if not factor > 1:
        raise SteppeError(f"factor must be larger than 1, got {factor:g}")
    good, bad = _rounded(low), _rounded(high)
    if not trains(good):
        return None, good
    if trains(bad):
        return bad, None
    while bad > factor * good:
        middle = _rounded(math.sqrt(good * bad))
        if middle in (good, bad):
            break
        if trains(middle):
            good = middle
        else:
            bad = middle
    return good, bad


def largest_radius(
    dataset: DomainDataset,
    executor: Executor,
    store: Store,
    *,
    algorithm: str,
    held_out: str,
    settings: Settings,
    seeds: int = 1,
    low: float = 0.01,
    high: float = 5.0,
    factor: float = 1.1,
    threshold: float = 0.5,
    tried: Callable[[Trial], None] = lambda trial: None,
) -> LargestRadius:
    """Search for one algorithm. Every run is one of the store: what is finished there is not trained again.

    Args:
        executor: does the runs, those of one ρ at a time.
        settings: of each run; a few hundred steps are enough to see whether it trains.
        seeds: a ρ trains when it does with more than half of the seeds.
        low: the smallest ρ, see :func:`bisect`.
        threshold: the share of ln C that the last losses must be below.
        tried: is told of every ρ.

    Raises:
        SteppeError: the algorithm has no ρ, a value is out of range, or a run failed for another reason than its loss.
    """
    name = parse(algorithm).name
    if not parse(name).takes("rho"):
        raise SteppeError(f"{name} has no radius rho: choose an algorithm that climbs by a given rho, such as sam")
    if seeds < 1:
        raise SteppeError(f"seeds must be at least 1, got {seeds}")
    if not 0 < threshold < 1:
        raise SteppeError(f"threshold must be between 0 and 1, got {threshold:g}")
    trials: dict[float, Trial] = {}

    def trains(rho: float) -> bool:
        given = replace(settings, rho=rho, hyper={key: value for key, value in settings.hyper.items() if key != "rho"})
        configs = [
            RunConfig.at(given, dataset=dataset.spec, held_out=held_out, algorithm=name, seed=seed)
            for seed in range(seeds)
        ]
        planned = jobs(store, dataset, configs)
        _do([job for job in planned if not _broke_down(job.directory)], executor)
        guessing = math.log(len(dataset.classes))
        losses = [_last_loss(job.directory, settings.steps) for job in planned]
        shares = tuple(None if loss is None else loss / guessing for loss in losses)
        good = sum(share is not None and share < threshold for share in shares)
        trials[rho] = Trial(rho, 2 * good > seeds, shares)
        tried(trials[rho])
        return trials[rho].trains

    good, bad = bisect(trains, low=low, high=high, factor=factor)
    found = LargestRadius(
        algorithm=name,
        dataset=dataset.name,
        held_out=held_out,
        steps=settings.steps,
        seeds=seeds,
        threshold=threshold,
        trains=good,
        fails=bad,
        trials=tuple(trials[rho] for rho in sorted(trials)),
    )
    write_radius(found, store.root, settings)
    return found


def _do(planned: Sequence[Job], executor: Executor) -> None:
    for outcome in executor.run(planned):
        if outcome.result is None and not _broke_down(outcome.job.directory):
            raise SteppeError(f"a run failed, and not for its loss: {outcome.error} ({outcome.job.directory})")


def _broke_down(directory: Path) -> bool:
    """Whether the run ended because its loss was not finite."""
    try:
        failure = json.loads((directory / FAILURE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(failure, dict) and failure.get("type") == NonFiniteLossError.__name__


def _last_loss(directory: Path, steps: int) -> float | None:
    """The mean of the training losses over the last part of the run; None where it broke down."""
    if _broke_down(directory):
        return None
    path = directory / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        train = [(int(line["step"]), float(line["loss"])) for line in lines if line["kind"] == "train"]
        last = [loss for step, loss in train if step > (1 - LAST) * steps] or [train[-1][1]]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise SteppeError(f"cannot read {path} ({error}); delete {directory} to train the run again") from error
    return statistics.fmean(last)


def _rounded(rho: float) -> float:
    return float(f"{rho:.{DIGITS}g}")
