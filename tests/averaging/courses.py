"""Models whose weights are set by hand, a course of them over the steps, and what was averaged."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from steppe.averaging import Average


class Steps(nn.Module):
    """Step t puts 1 in place t and 0 elsewhere: the average then says how much each step weighs in it."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(steps, dtype=torch.float64))
        self.made = 0

    @torch.no_grad()
    def step(self) -> None:
        self.w.zero_()
        self.w[self.made] = 1.0
        self.made += 1


def follow(average: Average, model: Steps, losses: Sequence[float], lengths: Sequence[int]) -> None:
    """Segments of so many steps, each with its validation loss."""
    for loss, length in zip(losses, lengths, strict=True):
        for _ in range(length):
            model.step()
            average.update()
        average.segment(loss)


def shares(added: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """How much each step weighs where these segments (one may be named twice) weigh the same."""
    steps = []
    for number, length in enumerate(lengths):
        steps += [Fraction(added.count(number), len(added) * length)] * length
    return torch.tensor([float(share) for share in steps], dtype=torch.float64)


def small_model(seed: int = 0) -> nn.Sequential:
    """With BatchNorm, whose buffers are floating-point numbers and a counter."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@torch.no_grad()
def put(model: nn.Module, step: int) -> None:
    """The weights that a model has after step t: random, and a function of t alone."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator))


def saved(average: Average) -> dict[str, Any]:
    """Its state, through a file as a checkpoint is."""
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.endswith(("weight", "bias", "w"))}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, and the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
