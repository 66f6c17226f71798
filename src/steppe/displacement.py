"""Moving weights away from w and back, bit for bit.

The one place that writes to weights. A :class:`Displacement` keeps one persistent copy of the weights, so a step
allocates nothing; every write is followed by clearing autocast's cache of weight casts, or a forward pass inside
the same autocast region would use the weights as they were before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from steppe.persistent import TensorStore
from steppe.shards import is_sharded, local, locals_of
from steppe.vectors import HALF, sent, widen


class Displacement:
    """w ↔ w + ε for a list of parameters.

    Its methods are to be called without gradients. They write through the parameters themselves, not through
    ``.data``, so that autograd notices a graph that is used across a write. Sharded parameters are written shard by
    shard.

    Args:
        climb_dtype: where given, half-precision parameters are replaced for the time of the displacement by
            copies in this dtype, which can hold an ε that half precision would round away. What hooks into their
            gradients' accumulation (DDP) is lost with that: torch has another node for another dtype.

    Attributes:
        store: the persistent copies.
        reshard: called after every write to sharded parameters: what was gathered from them is stale.
    """

    def __init__(self, climb_dtype: torch.dtype | None = None) -> None:
        self.climb_dtype = climb_dtype
        self.reshard: Callable[[], None] = lambda: None
        self.store = TensorStore()
        self._moved: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._exchanged: list[tuple[Tensor, Tensor]] = []

    @property
    def active(self) -> bool:
        """Whether weights are displaced now."""
        return bool(self._moved or self._exchanged)

    def scratch(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The persistent copies, free to be overwritten until :meth:`begin`."""
        return self.store.like(parameters, locals_of(parameters))

    def keep(self, parameters: Sequence[Tensor]) -> None:
        """Copy w into the persistent copies, for :meth:`kept`."""
        if parameters:
            torch._foreach_copy_(self.scratch(parameters), locals_of(parameters))

    def kept(self, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
        """The persistent copies: the weights as :meth:`begin` or :meth:`keep` last saw them.

        What they have not seen (a parameter that was added, or put on another device) is not in it.
        """
        return self.store.known(parameters, locals_of(parameters))

    def begin(self, parameters: list[Tensor], all_parameters: Sequence[Tensor], *, keep_all: bool = False) -> None:
        """Remember w; from here on :meth:`restore` brings it back.

        Args:
            parameters: those to be moved.
            all_parameters: the optimizer's.
            keep_all: copy all of them, so that :meth:`kept` holds them after the step.
        """
        self.store.keep_only(all_parameters)
        exchanged = [p for p in parameters if self.climb_dtype is not None and p.dtype in HALF]
        moved = [p for p in parameters if self.climb_dtype is None or p.dtype not in HALF]
        if keep_all:
            self.keep(all_parameters)
        else:
            self.keep(moved)
        self._moved, self._kept = moved, self.scratch(moved)
        for p in exchanged:
            original = p.data
            self._exchanged.append((p, original))
            p.data = original.to(self.climb_dtype)

    def add(self, parameters: list[Tensor], direction: list[Tensor], scale: float | Tensor) -> None:
        """w ← w + scale · direction, in place. ``direction``, of the weights' (shards') shapes, may be overwritten."""
        weights = locals_of(parameters)
        if any(d.dtype != w.dtype for d, w in zip(direction, weights, strict=True)):
            direction = [d.to(w.dtype) for d, w in zip(direction, weights, strict=True)]
        for device in dict.fromkeys(w.device for w in weights):
            here = [i for i, w in enumerate(weights) if w.device == device]
            targets, steps = [weights[i] for i in here], [direction[i] for i in here]
            alpha = scale
            if isinstance(alpha, Tensor):
                if alpha.device.type == "cpu":
                    alpha = alpha.item()  # no device to synchronise with, and one pass over memory less
                else:
                    torch._foreach_mul_(steps, sent(alpha, device))
                    alpha = 1.0
            torch._foreach_add_(targets, steps, alpha=alpha)
        self._written()

    def displacement(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The realised ε: weights now less weights kept, in float32 or better. Allocates."""
        kept = dict(zip(self._moved, self._kept, strict=True)) | dict(self._exchanged)
        return [widen(local(p)) - widen(kept[p]) for p in parameters]

    def restore(self) -> None:
        """Bring w back, bit for bit. Does nothing where nothing is displaced."""
        if self._moved:
            torch._foreach_copy_(locals_of(self._moved), self._kept)
        for p, original in self._exchanged:
            gradient = p.grad
            p.grad = None
            p.data = original
            if gradient is not None:
                p.grad = gradient.to(original.dtype)
        if self.active:
            self._moved, self._kept, self._exchanged = [], [], []
            self._written()

    @contextmanager
    def replaced(self, weights: Mapping[Tensor, Tensor]) -> Iterator[None]:
        """Inside, the parameters have other weights: nothing is copied, tensors change places.

        Sharded parameters, whose memory others refer to, are copied to and fro.

        Args:
            weights: parameter → the weights (of this rank's shard) it is to have; cast to the parameter's dtype.
        """
        whole = [(p, p.data) for p in weights if not is_sharded(p)]
        sharded = [(local(p), local(p).clone()) for p in weights if is_sharded(p)]
        try:
            with torch.no_grad():
                for p, _ in whole:
                    p.data = weights[p].to(p.dtype)
                for p in weights:
                    if is_sharded(p):
                        local(p).copy_(weights[p])
            self._written()
            yield
        finally:
            for p, original in whole:
                p.data = original
            with torch.no_grad():
                for shard, original in sharded:
                    shard.copy_(original)
            self._written()

    def _written(self) -> None:
        torch.clear_autocast_cache()
        self.reshard()
