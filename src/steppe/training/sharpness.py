"""Sharpness on the held-out domain over training: an instrument that watches a run and changes nothing of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from steppe.analysis import gradient_variance
from steppe.data.splits import Splits
from steppe.errors import SteppeError

LARGEST_BATCH = 32
"""Pictures in a batch: DomainBed's per domain."""

Loader = Callable[[NDArray[np.int64], int], Iterable[Sequence[Tensor]]]
"""Indices of the held-out domain and a batch size -> batches of its pictures, not augmented."""


def held_out_sharpness(model: nn.Module, splits: Splits, loader: Loader, *, batches: int) -> dict[str, float]:
    """The variance of mini-batch gradients on the held-out domain's pictures that answer the question.

    Which pictures, and in which batches, depends on the split alone: the same at every evaluation of a run, and for
    every algorithm.

    Args:
        model: with the weights that are looked at.
        splits: has the held-out domain's pictures.
        loader: gives them.
        batches: how many batches, of at most `LARGEST_BATCH` pictures and all of one size.

    Returns:
        ``gradient_variance`` and ``gradient_norm`` (:class:`~steppe.analysis.GradientVariance`) as far as they are
        finite.

    Raises:
        SteppeError: there are fewer pictures than batches.
    """
    pictures = np.asarray(splits.evaluation[splits.held_out][splits.answer], dtype=np.int64)
    if len(pictures) < batches:
        raise SteppeError(
            f"sharpness is to be measured on {batches} batches of {splits.held_out!r}, which has {len(pictures)} "
            "pictures: use fewer (--sharpness)"
        )
    size = min(LARGEST_BATCH, len(pictures) // batches)
    chosen = np.random.default_rng(0).permutation(pictures)[: size * batches]
    found = gradient_variance(model, list(loader(chosen, size)))
    values = {"gradient_variance": found.value, "gradient_norm": found.norm}
    return {name: value for name, value in values.items() if math.isfinite(value)}
