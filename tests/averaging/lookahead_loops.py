"""Closures and steps for whatever is inside: a sharpness-aware optimizer or a bare one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from every_method import batch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe


def closure_of(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    number: int,
    *,
    scaler: torch.amp.GradScaler | None = None,
    after: Callable[[], object] = lambda: None,
) -> Callable[[], Tensor]:
    """A closure for the batch of that number; ``after`` is called after each pass's ``backward()``."""
    given, labels, domains = batch(number, next(model.parameters()).dtype)

    def closure() -> Tensor:
        optimizer.zero_grad()
        if sharpness_aware(optimizer):
            x, y, domain = optimizer.ascent_batch(given, labels, domain=domains)
            loss = optimizer.objective(cross_entropy(model(x), y, reduction="none"), domain)
        else:
            loss = cross_entropy(model(given), labels)
        (loss if scaler is None else scaler.scale(loss)).backward()
        after()
        return loss

    return closure


def sharpness_aware(optimizer: torch.optim.Optimizer) -> bool:
    inside = optimizer.base if isinstance(optimizer, steppe.Lookahead) else optimizer
    return isinstance(inside, steppe.SharpnessAware)


def train(optimizer: torch.optim.Optimizer, model: nn.Module, numbers: Iterable[int], how: str = "closure") -> None:
    """A step for each batch, by its closure or without."""
    for number in numbers:
        closure = closure_of(optimizer, model, number)
        if how == "closure":
            optimizer.step(closure)
            continue
        if sharpness_aware(optimizer):
            for each in optimizer.passes():
                with each:
                    closure()
        else:
            closure()
        optimizer.step()
