"""DomainBed's augmentation on the device that trains: a batch at a time, every picture by what was drawn for it.

Workers draw (the same numbers in the same order as on the host, so that a picture is cut, mirrored and coloured in the
same way in both places), cut, and send the parts as they are, 8 bits a channel; the rest is done in float32.

Cutting and resizing is a pair of matrix products, Y·P·Xᵀ: P is a part, Y and X hold the weights of its rows and columns
in those of the result. A weight is a triangle as wide as a target pixel, but at least as a source pixel, which is what
Pillow does, and torch's ``interpolate(antialias=True)``; a grid sample would take four source pixels however much it
shrinks the picture, and alias. Every part has matrices of its own, so one batched product serves them all, and a mirror
image is the same product with the rows of X reversed.

Libraries that were looked at: kornia's colour jitter takes factors by sample but one order for the whole batch, and its
crops do not antialias; torchvision's transforms draw once for all pictures of a batch. What is computed here is what
torchvision's functions compute for a float tensor, picture by picture, to 1e-5. Pillow, on the host, cuts to 8 bits
after every operation, downwards where it blends, and knows 256 hues: its pictures are about a level of 255 darker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steppe.data.augmentation import BRIGHTNESS, CONTRAST, HUE, Drawn, TrainTransform, cut
from steppe.data.decoded_files import Pixels
from steppe.data.domains import DomainDataset, Indices
from steppe.data.loader import Batch, Batches, balanced_order, pixels_of
from steppe.data.sampling import one_thread, undisturbed_randomness
from steppe.data.slots import Part, Slots

LARGEST = 2048 * 2048
"""Pixels of a part that is sent as it is; of a larger one, its resized version (Pillow's)."""
PORTION_BYTES = 2**28
"""Of parts that are resized at a time, in float32 and padded to the largest."""


class RawBatch(NamedTuple):
    """A batch before its augmentation, on the host; B pictures, domain by domain. A part of one has the labels and
    domains of the whole batch."""

    parts: Tensor  # uint8 [n], part after part, each [H, W, 3]
    sizes: Tensor  # int64 [B, 2], H and W of each part
    mirrored: Tensor  # bool [B]
    order: Tensor  # int64 [B, 4]
    factors: Tensor  # float32 [B, 4]
    grey: Tensor  # bool [B]
    y: Tensor  # int64 [B]
    domain: Tensor  # int64 [B]


def raw_loader(
    dataset: DomainDataset,
    train: Mapping[str, Indices],
    *,
    batch_per_domain: int,
    start: int,
    stop: int,
    seed: int,
    transform: TrainTransform,
    workers: int = 0,
    part: Part = Part(),  # noqa: B008 - immutable
) -> Batches[RawBatch]:
    """As :func:`~steppe.data.loader.balanced_loader`, with what has been drawn beside the pictures and not done yet.

    Raises:
        SteppeError: as there.
    """
    order = balanced_order(dataset, train, batch_per_domain=batch_per_domain, start=start, stop=stop, seed=seed)
    return Batches(_Raw(dataset, Slots(dataset, order, tuple(train), part), transform), range(start, stop), workers)


class DeviceAugmentation:
    """Does what was drawn, on ``device``, and gives batches that are there.

    Equal to :class:`~steppe.data.augmentation.TrainTransform` in distribution, and nearly so in pixels (see above).

    Args:
        size: side of the result, in pixels.
        mean, std: of each channel.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.size, self.device = size, device
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (mean, std)
        )

    @torch.no_grad()
    def __call__(self, raw: RawBatch) -> Batch:
        """The batch; does not wait for the device."""
        x = torch.cat(list(self._resized(raw)))
        x = jittered(x, raw.order, raw.factors)
        grey = raw.grey.to(self.device, non_blocking=True)[:, None, None, None]
        x = torch.where(grey, luma(x), x).sub_(self._mean).div_(self._std)
        return Batch(x, *(labels.to(self.device, non_blocking=True) for labels in (raw.y, raw.domain)))

    def _resized(self, raw: RawBatch) -> Iterator[Tensor]:
        """The parts as float32 [b, 3, size, size] in [0, 1], some at a time."""
        parts = raw.parts.to(self.device, non_blocking=True)
        sizes = raw.sizes.tolist()
        begins = [0, *np.cumsum([3 * height * width for height, width in sizes]).tolist()]
        for first, last in _portions(sizes):
            height, width = (max(size[side] for size in sizes[first:last]) for side in (0, 1))
            padded = torch.zeros((last - first, 3, height, width), device=self.device)
            for row, (h, w) in enumerate(sizes[first:last]):
                part = parts[begins[first + row] : begins[first + row + 1]].view(h, w, 3)
                padded[row, :, :h, :w] = part.permute(2, 0, 1)
            lengths = raw.sizes[first:last].to(self.device, non_blocking=True)
            rows = resampling(lengths[:, 0], height, self.size)
            columns = resampling(lengths[:, 1], width, self.size)
            mirrored = raw.mirrored[first:last].to(self.device, non_blocking=True)[:, None, None]
            columns = torch.where(mirrored, columns.flip(1), columns)
            yield (rows[:, None] @ padded @ columns.mT[:, None]).mul_(1 / 255)


def resampling(lengths: Tensor, padded: int, size: int) -> Tensor:
    """The weights that resize ``lengths[i]`` pixels in a row to ``size``: float32 [b, size, padded], rows sum to 1.

    Target pixel t covers the source around c = (t + ½)·s, s = length/size; source pixel p has the weight
    max(0, 1 − |p + ½ − c| / max(s, 1)), over their sum; from ``lengths[i]`` on it is 0.
    """
    scale = (lengths.to(torch.float32) / size)[:, None, None]
    place = torch.arange(padded, dtype=torch.float32, device=lengths.device) + 0.5
    centre = (torch.arange(size, dtype=torch.float32, device=lengths.device) + 0.5)[:, None] * scale
    weights = (1 - (place - centre).abs() / scale.clamp(min=1)).clamp_(min=0) * (place < lengths[:, None, None])
    return weights / weights.sum(-1, keepdim=True)


def jittered(x: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of every picture changed by its factors in its order.

    The first three are f·x + (1 − f)·o, kept in [0, 1], with o = 0, the mean of the grey picture, or the grey picture.

    Args:
        x: float32 [B, 3, H, W] in [0, 1].
        order: int64 [B, 4], on the host: the numbers 0 to 3 of the operations, in the order of doing.
        factors: float32 [B, 4], on the host, by number.
    """
    for number, factor in zip(order.unbind(1), factors.gather(1, order).unbind(1), strict=True):
        shifted = (number == HUE).nonzero().flatten()
        kind, ratio = (
            values.to(x.device, non_blocking=True)[:, None, None, None]
            for values in (number, torch.where(number == HUE, 1.0, factor))
        )
        grey = luma(x)
        other = torch.where(kind == CONTRAST, grey.mean((2, 3), keepdim=True), grey)
        other = torch.where(kind == BRIGHTNESS, 0.0, other)
        x = (ratio * x + (1 - ratio) * other).clamp_(0, 1)
        if len(shifted):
            rows = shifted.to(x.device, non_blocking=True)
            turns = factor[shifted].to(x.device, non_blocking=True)[:, None, None]
            x.index_copy_(0, rows, hue_shifted(x.index_select(0, rows), turns))
    return x


def luma(x: Tensor) -> Tensor:
    """How light each pixel is, [B, 1, H, W]: ITU-R 601-2, in torchvision's digits."""
    red, green, blue = x.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def hue_shifted(x: Tensor, turns: Tensor) -> Tensor:
    """[n, 3, H, W] in [0, 1], with the hue turned by ``turns``, [n, 1, 1]; lightness and saturation in HSV stay.

    With M the largest and C the spread of a pixel's channels and h the hue in sixths of a turn, channel k is
    M − C·min(1, max(0, min(m, 4 − m))), m = (n_k + h) mod 6, n = 5, 3, 1 for red, green and blue.
    """
    red, green, blue = x.unbind(1)
    top = x.amax(1)
    spread = top - x.amin(1)
    divisor = torch.where(spread == 0, 1.0, spread)
    sixths = torch.where(
        top == red,
        (green - blue) / divisor,
        torch.where(top == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * turns
    channels = []
    for n in (5, 3, 1):
        m = (n + sixths).remainder(6)
        channels.append(top - spread * torch.minimum(m, 4 - m).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _portions(sizes: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Stretches of the batch that, padded to the largest of each, stay below ``PORTION_BYTES``."""
    first, height, width = 0, 0, 0
    for number, (h, w) in enumerate(sizes):
        height, width = max(height, h), max(width, w)
        if number > first and 12 * (number + 1 - first) * height * width > PORTION_BYTES:
            yield first, number
            first, height, width = number, h, w
    yield first, len(sizes)


class _Raw:
    def __init__(self, dataset: DomainDataset, slots: Slots, transform: TrainTransform) -> None:
        self._dataset = dataset
        self._slots = slots
        self._transform = transform

    def __call__(self, step: int) -> RawBatch:
        drawn: list[Drawn] = []
        parts = []
        with one_thread(), undisturbed_randomness():
            for slot, domain, index in self._slots.own(step):
                self._slots.begin(step, slot)
                pixels = np.asarray(pixels_of(self._dataset, domain, index))
                drawn.append(self._transform.draw(*pixels.shape[:2]))
                parts.append(self._part(pixels, drawn[-1]))
        y, domains = self._slots.labels(step)
        return RawBatch(
            parts=torch.from_numpy(np.concatenate([part.ravel() for part in parts])),
            sizes=torch.tensor([part.shape[:2] for part in parts]),
            mirrored=torch.tensor([each.mirrored for each in drawn]),
            order=torch.tensor([each.order for each in drawn]),
            factors=torch.tensor([each.factors for each in drawn]),
            grey=torch.tensor([each.grey for each in drawn]),
            y=y,
            domain=domains,
        )

    def _part(self, pixels: Pixels, drawn: Drawn) -> Pixels:
        if drawn.height * drawn.width > LARGEST:
            side = self._transform.size
            return np.asarray(cut(pixels, drawn).resize((side, side), Image.Resampling.BILINEAR))
        return pixels[drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]
