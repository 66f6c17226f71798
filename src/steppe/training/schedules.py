"""The base optimizer and the course of its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from steppe.training.config import Settings


def base_optimizer(settings: Settings, model: nn.Module) -> Optimizer:
    """Adam, AdamW or SGD over the trainable parameters, with torch's other defaults.

    Where ``clip_norm`` is set, the gradient is scaled down to that l2 norm just before the base optimizer's own step:
    after the second pass of a sharpness-aware method, and after a scaler has taken its factor out.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
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


def scheduler(settings: Settings, base: Optimizer) -> LambdaLR:
    """Linear warm-up, then constant, half a cosine or a line down to 0; to be advanced once a step."""
    return LambdaLR(base, lambda step: rate_factor(settings, step))


def rate_factor(settings: Settings, step: int) -> float:
    """The learning rate of the step after ``step`` steps, as a fraction of ``lr``.

    (s + 1) / W during the W steps of warm-up; then, with p = (s − W) / (S − W) of the way through the rest: 1,
    ½ (1 + cos π p), or 1 − p.
    """
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    way = (step - settings.warmup) / (settings.steps - settings.warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * way))
    if settings.schedule == "linear":
        return 1 - way
    return 1.0


def _clip(parameters: list[nn.Parameter], limit: float) -> None:
    nn.utils.clip_grad_norm_(parameters, limit)
