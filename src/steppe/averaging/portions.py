"""Working through parallel lists of tensors a portion at a time, and the one thing that Lookahead does to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CACHED = 2**18
"""Numbers that a CPU's caches hold of each of a few tensors."""
LAUNCHED = 2**24
"""Numbers that are worked on at once elsewhere: few launches, and temporaries that are small beside the weights."""


def portions(*lists: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Parallel lists in portions to work through one by one: a list for each list that is given.

    The tensors of a portion are on one device, those of one of its lists of one dtype, as the fast paths of foreach
    want it. On a CPU what several operations need stays in its caches from one to the next. Where large tensors lie in
    memory in one piece they are cut, so that a temporary of a portion's size is small.

    Args:
        lists: tensors of the same shapes in each; those at one place of all lists are on one device.
    """
    alike: dict[tuple[torch.device | torch.dtype, ...], list[tuple[Tensor, ...]]] = {}
    for row in zip(*lists, strict=True):
        alike.setdefault((row[0].device, *[tensor.dtype for tensor in row]), []).append(row)
    for rows in alike.values():
        most = CACHED if rows[0][0].device.type == "cpu" else LAUNCHED
        small: list[tuple[Tensor, ...]] = []
        size = 0
        for row in rows:
            numbers = row[0].numel()
            if numbers > most:
                yield from ([[piece] for piece in pieces] for pieces in _cut(row, most))
                continue
            if size + numbers > most:
                yield [list(column) for column in zip(*small, strict=True)]
                small, size = [], 0
            small.append(row)
            size += numbers
        if small:
            yield [list(column) for column in zip(*small, strict=True)]


def _cut(row: tuple[Tensor, ...], most: int) -> Iterator[tuple[Tensor, ...]]:
    flat = list(row)
    if not all(tensor.is_contiguous() for tensor in row):
        # In one piece all the same, if the order of their dimensions is one: channels may come last.
        order = sorted(range(row[0].dim()), key=row[0].stride, reverse=True)
        flat = [tensor.permute(order) for tensor in row]
        if not all(tensor.is_contiguous() for tensor in flat):
            return iter([row])
    return zip(*(torch.split(tensor.view(-1), most) for tensor in flat), strict=True)


@torch.no_grad()
def approach(targets: Sequence[Tensor], ends: Sequence[Tensor], share: float) -> None:
    """targets ← targets + share · (ends − targets), in place, in the targets' dtype.

    Args:
        targets: to be overwritten.
        ends: parallel to ``targets``.
        share: in (0, 1]; 1 gives the ends' own bits.
    """
    if not targets:
        return
    if share == 1:
        torch._foreach_copy_(list(targets), list(ends))
    elif all(target.dtype == end.dtype for target, end in zip(targets, ends, strict=True)):
        torch._foreach_lerp_(list(targets), list(ends), share)
    else:
        for some, towards in portions(targets, ends):
            torch._foreach_lerp_(some, _in_dtype(towards, some[0].dtype), share)


@torch.no_grad()
def pull_back(slow: Sequence[Tensor], ends: Sequence[Tensor], fast: Sequence[Tensor], share: float) -> None:
    """slow ← slow + share · (ends − slow), then fast ← slow, in place.

    Args:
        slow: in float32 or better.
        ends: parallel to ``slow``; may be ``fast``.
        fast: parallel to ``slow``.
        share: in (0, 1].
    """
    for some, towards, followers in portions(slow, ends, fast):
        approach(some, towards, share)
        torch._foreach_copy_(followers, some)


@torch.no_grad()
def add_pull(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    means: Sequence[Tensor],
    strength: float,
    *,
    share: float | None = None,
    scale: Tensor | None = None,
) -> None:
    """means ← means + share · (weights − means), then gradients ← gradients + strength · (weights − means), in place.

    Both at once cost little more than the second alone. The difference is taken in the dtype of the means before it is
    multiplied: where weights are their mean, nothing is added.

    Args:
        gradients: to be added to.
        weights: parallel to ``gradients``.
        means: parallel to ``gradients``, in float32 or better.
        strength: what the differences are multiplied by.
        share: in (0, 1]; ``None`` leaves the means as they are.
        scale: a further factor that the host need not know, 0-dim.
    """
    for some, ends, middles in portions(gradients, weights, means):
        ends = _in_dtype(ends, middles[0].dtype)
        if share is not None:
            approach(middles, ends, share)
        differences = torch._foreach_sub(ends, middles)
        if scale is not None:
            torch._foreach_mul_(differences, scale.to(middles[0].device, non_blocking=True))
        torch._foreach_add_(some, _in_dtype(differences, some[0].dtype), alpha=strength)
        del differences  # before the next are taken


def _in_dtype(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype) for tensor in tensors]
