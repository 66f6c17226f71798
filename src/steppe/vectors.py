"""Arithmetic on lists of tensors as if they were one vector: without a temporary, on whichever devices they are.

Half precision is summed in float32. Lists are this rank's shards where parameters are sharded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steppe.shards import total

HALF = (torch.float16, torch.bfloat16)


def widen(tensor: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return tensor.float() if tensor.dtype in HALF else tensor


def norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """The l2 norm of each tensor, 0-dim; half precision is summed in float32, where its squares do not overflow."""
    if all(t.dtype not in HALF for t in tensors):
        return torch._foreach_norm(tensors, 2)
    return [torch.linalg.vector_norm(t, dtype=torch.float32 if t.dtype in HALF else None) for t in tensors]


def inner_product(x: Sequence[Tensor], y: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """⟨x, y⟩ over tensors (shards) parallel to ``parameters``, 0-dim; half precision is summed in float32."""
    if x is y:
        return total([length.square() for length in norms(list(x))], parameters)
    return total([dot(a, b) for a, b in zip(x, y, strict=True)], parameters)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a b, 0-dim, without a temporary where both lie in memory in the same order and without gaps."""
    a, b = widen(a), widen(b)
    order = sorted(range(a.dim()), key=a.stride, reverse=True)
    a, b = a.permute(order), b.permute(order)
    if a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.reshape(-1), b.reshape(-1))
    return torch.sum(a * b)


def scale(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiply by a 0-dim tensor in place, on whichever devices the tensors are."""
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        torch._foreach_mul_([t for t in tensors if t.device == device], sent(factor, device))


def add_scaled(tensors: list[Tensor], directions: list[Tensor], factor: Tensor) -> None:
    """tensors ← tensors + factor · directions for a 0-dim factor, in place and without temporaries."""
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        here = [(t, d) for t, d in zip(tensors, directions, strict=True) if t.device == device]
        if device.type == "cpu":
            torch._foreach_add_([t for t, _ in here], [d for _, d in here], alpha=factor.item())
            continue
        moved = sent(factor, device)
        for tensor, direction in here:
            tensor.addcmul_(direction, moved.to(tensor.dtype))


def sent(value: Tensor, device: torch.device) -> Tensor:
    """A 0-dim tensor on ``device``. Nobody waits for it, but for the host, which else would read it too early."""
    return value.to(device, non_blocking=device.type != "cpu")
