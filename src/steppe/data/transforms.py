"""From a picture to the network's input: DomainBed's augmentation for training, a plain resize for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from steppe.data.augmentation import TrainTransform
from steppe.data.tensors import as_rgb

Transform = Callable[[Image.Image], Tensor]
TensorTransform = Callable[[Tensor], Tensor]

# torchvision is imported where it is used: it takes seconds, and looking at data sets and splits does not need it.


def train_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> TrainTransform:
    """DomainBed's training augmentation, to float32 [3, size, size]; see :class:`TrainTransform`."""
    return TrainTransform(size, mean, std)


def eval_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Resized to size × size whatever the shape was, as DomainBed does; then as in training."""
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    transform: Transform = v2.Compose(
        [
            v2.Resize((size, size)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )
    return transform


def tensor_transform(mean: Sequence[float], std: Sequence[float]) -> TensorTransform:
    """For the samples of a :class:`~steppe.data.tensors.TensorDomains`, a batch at a time: [B, C, H, W].

    In RGB where ``mean`` has three entries, else as they are; then (x − mean) / std by channel.
    """
    shift, scale = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))

    def transform(x: Tensor) -> Tensor:
        return ((as_rgb(x) if len(mean) == 3 else x) - shift) / scale

    return transform
