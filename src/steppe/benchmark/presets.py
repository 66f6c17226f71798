"""Comparisons with all their settings, by name."""

from __future__ import annotations

from dataclasses import dataclass

from steppe.training.config import Settings


@dataclass(frozen=True)
class Preset:
    """A data set, what is compared on it, and how it is trained."""

    dataset: str
    algorithms: tuple[str, ...]
    held_out: tuple[str, ...]
    settings: Settings


DEMO = Preset(
    dataset="emoji",
    algorithms=("erm", "sam", "disam"),
    held_out=("line", "fluent"),
    settings=Settings(
        backbone="efficientnet_lite0",
        image_size=112,
        batch_per_domain=8,
        steps=200,
        eval_every=50,
        optimizer="adamw",
        lr=6e-4,
        weight_decay=1e-4,
        schedule="cosine",
        warmup=20,
        frozen_batch_norm=False,
    ),
)
"""`steppe demo`: minutes on two cores."""
