"""Sharpness on the held-out domain over training: an instrument that watches a run and changes nothing of it."""

from __future__ import annotations

import math

import numpy as np

from steppe.analysis import gradient_variance
from steppe.data import DomainDataset
from steppe.data.loader import evaluation_loader
from steppe.data.splits import Splits
from steppe.errors import SteppeError
from steppe.models import Classifier
from steppe.training.inputs import input_transform

LARGEST_BATCH = 32
"""Pictures in a batch: DomainBed's per domain."""


def held_out_sharpness(
    model: Classifier, dataset: DomainDataset, splits: Splits, *, size: int, batches: int | None
) -> dict[str, float]:
    """The variance of mini-batch gradients on the held-out domain's pictures that answer the question.

    Which pictures, and in which batches, depends on the split alone: the same at every evaluation of a run, and for
    every algorithm.

    Args:
        model: with the weights that are looked at.
        dataset: has the pictures.
        splits: say which of them.
        size: side of the pictures, in pixels.
        batches: how many batches, of at most `LARGEST_BATCH` pictures and all of one size; ``None`` measures nothing.

    Returns:
        ``gradient_variance`` and ``gradient_norm`` (:class:`~steppe.analysis.GradientVariance`) as far as they are
        finite.

    Raises:
        SteppeError: there are fewer pictures than batches, or the weights are sharded.
    """
    if batches is None:
        return {}
    pictures = np.asarray(splits.evaluation[splits.held_out][splits.answer], dtype=np.int64)
    if len(pictures) < batches:
        raise SteppeError(
            f"sharpness is to be measured on {batches} batches of {splits.held_out!r}, which has {len(pictures)} "
            "pictures: use fewer (--sharpness)"
        )
    each = min(LARGEST_BATCH, len(pictures) // batches)
    chosen = np.random.default_rng(0).permutation(pictures)[: each * batches]
    transform = input_transform(dataset, model, size, augment=False)
    pictured = evaluation_loader(dataset, splits.held_out, chosen, batch_size=each, transform=transform)
    try:
        found = gradient_variance(model, pictured)
    except SteppeError:
        raise
    except ValueError as error:
        raise SteppeError(f"sharpness cannot be measured: {error}; leave out --sharpness") from error
    values = {"gradient_variance": found.value, "gradient_norm": found.norm}
    return {name: value for name, value in values.items() if math.isfinite(value)}
