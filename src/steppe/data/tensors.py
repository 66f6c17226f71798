"""Data sets whose samples are tensors in memory, fed to the network as they are."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from steppe.data.domains import DomainDataset, Indices

if TYPE_CHECKING:
    from torch import Tensor


class TensorDomains(DomainDataset):
    """Small pictures held in memory as tensors: no augmentation, no resizing, and a batch is one index operation.

    In a loop of your own::

        x, y = dataset.tensors("15")          # a whole domain
        x, y = dataset.tensors("15", [4, 7])  # two of its samples

    Attributes:
        shape: channels, height and width of every sample. Of two channels the first is shown in red, the second in
            green.
    """

    shape: ClassVar[tuple[int, int, int]]

    @abc.abstractmethod
    def tensors(self, domain: str, indices: Indices | Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Samples and labels of ``domain``: float32 [n, C, H, W] in [0, 1], int64 [n]; a copy, on the CPU.

        Args:
            indices: which samples, in this order; by default all.

        Raises:
            SteppeError: an unknown domain, or the files behind the set cannot be read.
        """

    def image(self, domain: str, index: int) -> Image.Image:
        """The sample as a person would see it, in mode RGB, 8 bits a channel."""
        x, _ = self.tensors(domain, [index])
        levels = as_rgb(x)[0].permute(1, 2, 0).mul(255).round_()
        return Image.fromarray(levels.numpy().astype(np.uint8))


def as_rgb(x: Tensor) -> Tensor:
    """[n, C, H, W] with one (grey), two (red, green) or three channels as [n, 3, H, W]."""
    if x.shape[1] == 1:
        return x.expand(-1, 3, -1, -1)
    if x.shape[1] == 2:
        import torch

        return torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    return x
