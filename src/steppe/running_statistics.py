"""Keeping running statistics (BatchNorm's mean, variance and count) out of the passes that must not count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter as _unnoticed

from steppe.persistent import TensorStore, repeats
from steppe.vectors import HALF


class RunningStatistics:
    """The persistent buffers of a model: those in its state dict (attention masks and the like are not).

    Args:
        model: ``None`` where there is nothing to protect.
    """

    def __init__(self, model: nn.Module | None) -> None:
        # Modules rather than buffers are remembered: a module may put new tensors in their place.
        self._owners = [
            (module, name)
            for module in (model.modules() if model is not None else ())
            for name in module._buffers
            if name not in module._non_persistent_buffers_set
        ]
        self._store = TensorStore()

    @contextmanager
    def preserved(self, active: bool = True, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Bring the buffers back at the end, bit for bit, whatever happens in between.

        A snapshot, because BatchNorm's momentum set to 0 would still count batches (``num_batches_tracked``), which
        is all that matters with ``momentum=None``, and would not reach other stateful layers (spectral norm,
        codebooks). Buffers that a module replaces instead of writing to them come back as the tensors they were.

        Autograd is not to notice: between a forward pass and its backward pass another forward pass may be made in
        here. BatchNorm has saved its statistics for the backward pass, and after a write that counts it would refuse.

        Args:
            active: false does nothing.
            dtype: meanwhile, half-precision buffers are exchanged for copies in this dtype.
        """
        found = [(module, name, module._buffers.get(name)) for module, name in self._owners] if active else []
        owners = [(module, name, buffer) for module, name, buffer in found if buffer is not None]
        buffers = [buffer for _, _, buffer in owners if _writable(buffer)]
        self._store.keep_only(buffers)
        kept = self._store.like(buffers)
        _copy(kept, buffers)
        with _unnoticed(tuple(buffers)):
            try:
                for module, name, buffer in owners:
                    if dtype is not None and buffer.dtype in HALF:
                        module._buffers[name] = buffer.to(dtype)
                yield
            finally:
                for module, name, buffer in owners:
                    module._buffers[name] = buffer
                _copy(buffers, kept)


def _writable(buffer: Tensor) -> bool:
    """Whether a layer can have written to a buffer: not to one number in many places, nor to an inference tensor."""
    return not repeats(buffer) and not buffer.is_inference()


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    # The fast path of foreach wants one dtype a call; counters are integers, statistics are not.
    for dtype in {t.dtype for t in targets}:
        chosen = [i for i, t in enumerate(targets) if t.dtype == dtype]
        torch._foreach_copy_([targets[i] for i in chosen], [sources[i] for i in chosen])
