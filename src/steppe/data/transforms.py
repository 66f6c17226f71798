"""From a picture to the network's input: DomainBed's augmentation for training, a plain resize for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from steppe.data.tensors import as_rgb

Transform = Callable[[Image.Image], Tensor]
TensorTransform = Callable[[Tensor], Tensor]

# torchvision is imported where it is used: it takes seconds, and looking at data sets and splits does not need it.


def train_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """DomainBed's training augmentation (Gulrajani & Lopez-Paz, 2021), to float32 [3, size, size].

    A crop of 70 to 100 % of the area with a side ratio of 3:4 to 4:3, resized; a mirror image half of the time;
    brightness, contrast, saturation and hue jittered by up to 0.3; grey in one of ten; scaled to [0, 1]; then
    (x − mean) / std by channel.
    """
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    transform: Transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.7, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.3),
            v2.RandomGrayscale(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )
    return transform


def eval_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Resized to size × size whatever the shape was, as DomainBed does; then as in training."""
    from torchvision.transforms import v2

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
