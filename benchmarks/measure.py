"""Measuring two things against each other in one run: interleaved pairs, the median ratio and its 95 % interval.

A machine's speed drifts and is shared; the ratio within a pair does not care. Single seconds are reported for
orientation only.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np
from scipy.stats import bootstrap


@dataclass(frozen=True)
class Ratio:
    """The median over pairs of a's seconds over b's, with the 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float
    a_median: float
    b_median: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleaved(
    a: Callable[[], float | None], b: Callable[[], float | None], pairs: int = 20, warmup: int = 2
) -> Ratio:
    """Call a and b in turn, the order within a pair alternating, and compare their wall-clock seconds.

    Args:
        a: what is measured; must have finished its work when it returns (synchronise with a device inside). Where
            not all of a call counts, it returns the seconds that do.
        b: what it is measured against.
        pairs: how many pairs count; 20 or more for a figure that is quoted.
        warmup: how many pairs come first and do not count.
    """
    seconds: dict[str, list[float]] = {"a": [], "b": []}
    for pair in range(pairs + warmup):
        for name, call in (("a", a), ("b", b)) if pair % 2 else (("b", b), ("a", a)):
            start = time.perf_counter()
            counted = call()
            elapsed = time.perf_counter() - start
            if pair >= warmup:
                seconds[name].append(elapsed if counted is None else counted)
    return paired(seconds["a"], seconds["b"])


def paired(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """What two things took in as many pairs, as a ratio; of a single pair the interval is that ratio."""
    ratios = np.array(a) / np.array(b)
    low = high = float(ratios[0])
    if len(ratios) > 1:
        low, high = bootstrap((ratios,), np.median, n_resamples=5000, rng=0, method="percentile").confidence_interval
    return Ratio(
        float(np.median(ratios)), float(low), float(high), statistics.median(a), statistics.median(b), len(ratios)
    )


def setting(*packages: str) -> str:
    """One line on the machine and the versions, to be printed with every table."""
    import torch

    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", *packages))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU"
    return f"{device}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"
