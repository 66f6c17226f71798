"""The base optimizer and the course of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from steppe.training.config import Settings
from steppe.training.recipes import Recipe
from steppe.training.vocabulary_trajectory import LR_FACTOR, LR_PER, LR_WARMUP
from steppe.training.words import Value


@dataclass(frozen=True)
class LargeRate:
    """What an algorithm makes of the learning rate: it explores at a multiple of the one that is set.

    Attributes:
        factor: F, the multiple.
        warmup: share of the run's steps in which it comes in.
        round: steps from one advance of the schedule to the next: 1, or a round's.
    """

    factor: float = 1.0
    warmup: float = 0.0
    round: int = 1

    @classmethod
    def of(cls, recipe: Recipe, values: Mapping[str, Value]) -> LargeRate:
        """The one of a sum of words; ``values`` are its hyper-parameters."""
        for word in recipe.words:
            own = recipe.names.of(word, values)
            if LR_FACTOR in own:
                per_round = own[LR_PER] == "round"
                return cls(float(own[LR_FACTOR]), float(own[LR_WARMUP]), int(own["k"]) if per_round else 1)
        return cls()

    def share(self, settings: Settings, count: int) -> float:
        """The multiple after ``count`` advances of the schedule, as a fraction of the full one, F.

        (1 + (F − 1) (s + 1) / W) / F during the first W steps, s = count · round, W = warmup · steps; then 1.
        """
        ramp = round(self.warmup * settings.steps)
        risen = min(1.0, (count * self.round + 1) / ramp) if ramp else 1.0
        return (1 + (self.factor - 1) * risen) / self.factor


def base_optimizer(settings: Settings, model: nn.Module, large: LargeRate | None = None) -> Optimizer:
    """Adam, AdamW or SGD over the trainable parameters, with torch's other defaults, at the largest learning rate.

    Where ``clip_norm`` is set, the gradient is scaled down to that l2 norm just before the base optimizer's own step:
    after the second pass of a sharpness-aware method, and after a scaler has taken its factor out.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    factor = 1.0 if large is None else large.factor
    common: dict[str, Any] = {"lr": settings.lr * factor, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        base: Optimizer = torch.optim.SGD(parameters, momentum=settings.momentum, **common)
    elif settings.optimizer == "adamw":
        base = torch.optim.AdamW(parameters, **common)
    else:
        base = torch.optim.Adam(parameters, **common)
    limit = settings.clip_norm
    if limit is not None:
        base.register_step_pre_hook(lambda *_: _clip(parameters, limit))
    return base


def scheduler(settings: Settings, base: Optimizer, large: LargeRate | None = None) -> LambdaLR:
    """Linear warm-up, then constant, half a cosine or a line down to 0; to be advanced once a step (or a round)."""
    if large is None:
        return LambdaLR(base, lambda step: rate_factor(settings, step))
    return LambdaLR(base, lambda count: rate_factor(settings, count, large.round) * large.share(settings, count))


def rate_factor(settings: Settings, count: int, round: int = 1) -> float:
    """The learning rate after ``count`` advances of the schedule, as a fraction of ``lr``.

    (s + 1) / W during the W steps of warm-up, s = count · round; then, with p = (count − ⌈W / round⌉) / (S − W) of the
    way through the rest: 1, ½ (1 + cos π p), or 1 − p. With a round of 1 p is (s − W) / (S − W); with a longer one the
    schedule's way is counted in rounds, as its authors do, while both warm-ups are counted in steps.
    """
    if count * round < settings.warmup:
        return (count * round + 1) / settings.warmup
    way = (count - -(-settings.warmup // round)) / (settings.steps - settings.warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * way))
    if settings.schedule == "linear":
        return 1 - way
    return 1.0


def _clip(parameters: list[nn.Parameter], limit: float) -> None:
    nn.utils.clip_grad_norm_(parameters, limit)
