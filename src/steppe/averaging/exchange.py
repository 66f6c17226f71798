"""Two sets of tensors change places, and change back, with memory for one tensor besides.

Contents are copied rather than memory exchanged, because others refer to the memory of weights: FSDP's shards,
captured graphs, the flat weights of recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class _Swap:
    """Two tensors of one dtype that change places.

    A turn that an interrupt has left anywhere can be taken up again: what it has done already it may do twice.
    """

    def __init__(self, weights: Tensor, other: Tensor) -> None:
        self._weights, self._other = weights, other
        self._kept: Tensor | None = None
        self._written = False
        self._turns = 0

    def there(self) -> None:
        if self._kept is None:
            self._written = False
            self._kept = self._weights.clone()
        if not self._written:
            self._weights.copy_(self._other)
            self._written = True
        self._other.copy_(self._kept)
        self._kept = None
        self._turns += 1

    def back(self) -> None:
        while self._kept is not None or self._turns % 2:
            self.there()


class _Show:
    """Weights that are shown the contents of a tensor of another dtype, which cannot hold their bits meanwhile."""

    def __init__(self, weights: Tensor, other: Tensor) -> None:
        self._weights, self._other = weights, other
        self._kept: Tensor | None = None

    def there(self) -> None:
        self._kept = self._weights.clone()
        self._weights.copy_(self._other)

    def back(self) -> None:
        if self._kept is not None:
            self._weights.copy_(self._kept)
            self._kept = None


@contextmanager
def exchanged(weights: Sequence[Tensor], others: Sequence[Tensor], written: Callable[[], None]) -> Iterator[None]:
    """Inside, ``weights`` have the contents of ``others``; at the end their own again, bit for bit, whatever happens.

    Where the dtypes agree, ``others`` hold those of ``weights`` meanwhile, and no more than one tensor is copied at a
    time. Where they do not, a copy of the weights is kept.

    Args:
        weights: to be written to.
        others: parallel to ``weights``.
        written: called after the tensors were written to, each way.
    """
    pairs = [(_Swap if w.dtype == o.dtype else _Show)(w, o) for w, o in zip(weights, others, strict=True)]

    @torch.no_grad()
    def change_back() -> None:
        for pair in pairs:
            pair.back()
        written()

    try:
        with torch.no_grad():
            for pair in pairs:
                pair.there()
        written()
        yield
    finally:
        # An interrupt may hit the way back itself: it is gone twice.
        try:
            change_back()
        except BaseException:
            change_back()
            raise
