"""One small classifier and its batches, for what must hold whatever the method (:data:`problems.EVERY`) is.

Precision, compilation, randomness, resuming: in any dtype, with BatchNorm and dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe


class Classifier(nn.Module):
    """Two layers with BatchNorm and dropout between. A class of its own: torch.compile sees the hooks on one."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.second = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(torch.tanh(self.norm(self.first(x)))))


def batch(number: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels, domains; domains differ in difficulty."""
    generator = torch.Generator().manual_seed(100 + number)
    x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (12,), generator=generator)
    domain = torch.arange(12) % 3
    return (x * (1 + domain[:, None])).to(dtype), y, domain


def closure_of(
    optimizer: steppe.SharpnessAware,
    model: Callable[[Tensor], Tensor],
    number: int,
    *,
    scaler: torch.amp.GradScaler | None = None,
    after: Callable[[str], object] = lambda name: None,
) -> Callable[[], Tensor]:
    """A closure for the batch of that number; ``after`` is called after each pass's ``backward()`` with its name."""
    given, labels, domains = batch(number, next(iter(optimizer.parameters())).dtype)

    def closure() -> Tensor:
        optimizer.zero_grad()
        x, y, domain = optimizer.ascent_batch(given, labels, domain=domains)
        loss = optimizer.objective(cross_entropy(model(x), y, reduction="none"), domain)
        (loss if scaler is None else scaler.scale(loss)).backward()
        after(str(optimizer._stage.phase))
        return loss

    return closure


def train(optimizer: steppe.SharpnessAware, model: Callable[[Tensor], Tensor], steps: range) -> list[float]:
    """The radius of each step."""
    radii = []
    for number in steps:
        optimizer.step(closure_of(optimizer, model, number))
        radii.append(float(optimizer.diagnostics["radius"]))
    return radii


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).to(torch.float64) for p in model.parameters()])


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
