"""One batch on several processes: whose rows are whose, the joined loss, and batch normalisation of all rows.

Every process makes its own rows of the batch and calls the model on them. What the model says is gathered, so that
each process computes the loss of the *whole* batch, as one process would: penalties, DISAM's variance, Fishr and
Mixup know nothing of processes. ``DistributedDataParallel`` averages the gradients, which :func:`gathered` has scaled
for that.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steppe.errors import SteppeError
from steppe.training.team import Team

HALVES = (torch.float16, torch.bfloat16)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int], rank: int) -> Tensor:
        ctx.begin, ctx.count, ctx.world = sum(counts[:rank]), counts[rank], len(counts)
        return _all_rows(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].narrow(0, ctx.begin, ctx.count) * ctx.world, None, None


def gathered(rows: Tensor, counts: Sequence[int], rank: int, *, differentiable: bool = True) -> Tensor:
    """See :meth:`~steppe.training.team.Team.gather_rows`."""
    if not differentiable:
        return _all_rows(rows.detach(), counts)
    found: Tensor = _Gathered.apply(rows, counts, rank)
    return found


def _all_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    sent = rows.float() if rows.dtype in HALVES else rows  # which gloo does not know; nothing is lost
    padded = sent.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = sent
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)]).to(rows.dtype)


class Joint:
    """Which rows of one pass's batch are this process's.

    Slot s of the batch of a step belongs to process s mod R, whatever part of the batch a pass sees.

    Args:
        team: the processes.
        slots: int64 ``[n]`` on the CPU, the slots that the pass sees, in their order.

    Raises:
        SteppeError: some process has none of them.
    """

    def __init__(self, team: Team, slots: Tensor) -> None:
        owners = slots % team.size
        self._team = team
        self.counts: list[int] = torch.bincount(owners, minlength=team.size).tolist()
        if 0 in self.counts:
            raise SteppeError(
                f"a pass of {len(slots)} pictures leaves some of the {team.size} processes without any: launch fewer, "
                "or raise batch_per_domain"
            )
        order = torch.argsort(owners, stable=True)
        self._back = torch.argsort(order)
        begin = sum(self.counts[: team.rank])
        mine = slots.index_select(0, order[begin : begin + self.counts[team.rank]])
        self.own = torch.div(mine, team.size, rounding_mode="floor")
        """Which of the process's rows of the whole batch the pass sees."""

    def gather(self, rows: Tensor, *, differentiable: bool = True) -> Tensor:
        """The rows of all processes, in the order of the slots. Every process must call this."""
        found = self._team.gather_rows(rows, self.counts, differentiable=differentiable)
        return found.index_select(0, self._back.to(found.device))


class JointBatchNorm(TorchFunctionMode):
    """Inside, batch normalisation that trains normalises by the statistics of all processes' rows.

    It takes the place of ``torch.nn.functional.batch_norm``, which every layer calls, timm's ``BatchNormAct2d`` and a
    copy of a model too: layers need not be exchanged, and state dicts stay as they are. (``torch.nn.SyncBatchNorm``
    refuses the CPU, and is another class.)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            given = _BATCH_NORM.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if given.arguments["training"]:
                return _normalised(**given.arguments)
        return func(*args, **(kwargs or {}))


_BATCH_NORM = inspect.signature(F.batch_norm)


def _normalised(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """(x − μ)/√(σ² + eps)·weight + bias, with mean μ and variance σ² of each channel over all processes."""
    y, mean, variance, count = _Standardised.apply(input, eps)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.mul_(1 - momentum).add_(mean.to(running_mean), alpha=momentum)
        if running_var is not None:
            unbiased = variance * (count / (count - 1))
            running_var.mul_(1 - momentum).add_(unbiased.to(running_var), alpha=momentum)
    shape = (1, -1, *[1] * (input.dim() - 2))
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    found: Tensor = y.to(input.dtype)
    return found


class _Standardised(torch.autograd.Function):
    """x̂ = (x − μ)/√(σ² + eps); ∂: (g − mean(g) − x̂·mean(g·x̂))/√(σ² + eps), all means over all processes' rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.dim()) if d != 1]
        wide = x if x.dtype not in HALVES else x.float()
        sums = wide.sum(dims, dtype=torch.float64)
        joined = torch.cat([sums, sums.new_full((1,), x.numel() // x.shape[1])])
        dist.all_reduce(joined)
        mean, count = joined[:-1] / joined[-1], joined[-1]
        shape = (1, -1, *[1] * (x.dim() - 2))
        centred = wide - mean.to(wide.dtype).view(shape)
        squares = centred.square().sum(dims, dtype=torch.float64)
        dist.all_reduce(squares)
        variance = squares / count
        scale = (variance + eps).rsqrt().to(wide.dtype).view(shape)
        y = centred.mul_(scale)
        ctx.dims, ctx.shape, ctx.dtype = dims, shape, x.dtype
        ctx.save_for_backward(y, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, scale, count = ctx.saved_tensors
        g = gradients[0]
        means = torch.stack([t.sum(ctx.dims, dtype=torch.float64) for t in (g, g * y)])
        dist.all_reduce(means)
        first, second = (row.to(g.dtype).view(ctx.shape) for row in means / count)
        return ((g - first - y * second) * scale).to(ctx.dtype), None
