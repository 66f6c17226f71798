"""Parameters of which every rank holds a shard (FSDP2's DTensors): work on the shard, sum over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a ``DTensor``."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: the shard of a ``DTensor`` (the same memory), anything else as it is."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        shard: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return shard


def locals_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """:func:`local` of each."""
    return [local(tensor) for tensor in tensors]


def as_sharded(shard: Tensor, parameter: Tensor) -> Tensor:
    """``shard`` as a ``DTensor`` that is laid out like ``parameter``; itself where the parameter is not sharded."""
    if not is_sharded(parameter):
        return shard
    from torch.distributed.tensor import DTensor

    like: Any = parameter
    return DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def shard_of(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's shard of ``value``: of a ``DTensor`` its own, of a whole tensor the part that ``parameter`` holds."""
    if is_sharded(value) or not is_sharded(parameter):
        return local(value)
    from torch.distributed.tensor import distribute_tensor

    like: Any = parameter
    return local(distribute_tensor(value.to(local(parameter).device), like.device_mesh, like.placements))


def total(values: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Σ over parameters of 0-dim values that were computed on this rank's shards: the same sum on every rank.

    What is replicated counts once, what is sharded is summed over the ranks that hold different shards.

    Args:
        values: one a parameter.
        parameters: parallel to ``values``.
    """
    device = values[0].device
    moved = [value.to(device) for value in values]
    sharded: dict[Any, list[Tensor]] = {}
    whole: list[Tensor] = []
    for value, parameter in zip(moved, parameters, strict=True):
        if is_sharded(parameter):
            like: Any = parameter
            sharded.setdefault((like.device_mesh, like.placements), []).append(value)
        else:
            whole.append(value)
    sums = [torch.stack(whole).sum()] if whole else []
    for (mesh, placements), parts in sharded.items():
        part = torch.stack(parts).sum()
        for dimension, placement in enumerate(placements):
            if not placement.is_replicate():  # a strided shard says that it is no shard
                torch.distributed.all_reduce(part, group=mesh.get_group(dimension))
        sums.append(part)
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def total_norm(lengths: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The l2 norm of all parameters together, from the norm of each one's shard; 0-dim, on the first one's device."""
    if any(is_sharded(parameter) for parameter in parameters):
        return total([length.square() for length in lengths], parameters).sqrt()
    device = lengths[0].device
    norm: Tensor = torch.linalg.vector_norm(torch.stack([length.to(device) for length in lengths]))
    return norm
