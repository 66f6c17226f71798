"""Moving weights away from w and back, bit for bit.

The one place that writes to weights. A :class:`Displacement` keeps one persistent copy of the weights, so a step
allocates nothing; every write is followed by clearing autocast's cache of weight casts, or a forward pass inside
the same autocast region would use the weights as they were before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steppe.persistent import TensorStore

HALF = (torch.float16, torch.bfloat16)


class Displacement:
    """w ↔ w + ε for a list of parameters.

    Its methods are to be called without gradients. They write through the parameters themselves, not through
    ``.data``, so that autograd notices a graph that is used across a write.

    Args:
        climb_dtype: where given, half-precision parameters are replaced for the time of the displacement by
            copies in this dtype, which can hold an ε that half precision would round away.
    """

    def __init__(self, climb_dtype: torch.dtype | None = None) -> None:
        self.climb_dtype = climb_dtype
        self._store = TensorStore()
        self._moved: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._exchanged: list[tuple[Tensor, Tensor]] = []

    @property
    def active(self) -> bool:
        """Whether weights are displaced now."""
        return bool(self._moved or self._exchanged)

    def scratch(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The persistent copies, free to be overwritten until :meth:`begin`."""
        return self._store.like(weights)

    def begin(self, weights: list[Tensor], all_weights: Sequence[Tensor]) -> None:
        """Remember w; from here on :meth:`restore` brings it back."""
        self._store.keep_only(all_weights)
        exchanged = [w for w in weights if self.climb_dtype is not None and w.dtype in HALF]
        moved = [w for w in weights if self.climb_dtype is None or w.dtype not in HALF]
        kept = self._store.like(moved)
        if moved:
            torch._foreach_copy_(kept, moved)
        self._moved, self._kept = moved, kept
        for w in exchanged:
            original = w.data
            self._exchanged.append((w, original))
            w.data = original.to(self.climb_dtype)

    def add(self, weights: list[Tensor], direction: list[Tensor], scale: float | Tensor) -> None:
        """w ← w + scale · direction, in place. ``direction`` may be overwritten."""
        if any(d.dtype != w.dtype for d, w in zip(direction, weights, strict=True)):
            direction = [d.to(w.dtype) for d, w in zip(direction, weights, strict=True)]
        if isinstance(scale, Tensor):
            if scale.device.type == "cpu":
                scale = scale.item()  # no device to synchronise with, and one pass over memory less
            else:
                torch._foreach_mul_(direction, scale)
                scale = 1.0
        torch._foreach_add_(weights, direction, alpha=scale)
        torch.clear_autocast_cache()

    def displacement(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The realised ε: weights now less weights kept, in float32 or better. Allocates."""
        kept = dict(zip(self._moved, self._kept, strict=True)) | dict(self._exchanged)
        return [widen(w) - widen(kept[w]) for w in weights]

    def restore(self) -> None:
        """Bring w back, bit for bit. Does nothing where nothing is displaced."""
        if self._moved:
            torch._foreach_copy_(self._moved, self._kept)
        for w, original in self._exchanged:
            gradient = w.grad
            w.grad = None
            w.data = original
            if gradient is not None:
                w.grad = gradient.to(original.dtype)
        self._moved, self._kept, self._exchanged = [], [], []
        torch.clear_autocast_cache()


def widen(tensor: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return tensor.float() if tensor.dtype in HALF else tensor
