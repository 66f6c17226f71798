"""DomainBed's training augmentation: what is drawn for a picture, and how Pillow does it in 8 bits.

Both halves are torchvision's to the bit: the random numbers are drawn from torch's global generator in the order in
which ``torchvision.transforms.v2`` draws them, and the pixels are those of its transforms on Pillow's pictures
(tests/data/test_augmentation.py holds one against the other). Apart from each other they can be done in two places: a
worker draws and cuts, an accelerator does the rest (:mod:`steppe.data.device_augmentation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steppe.data import hue
from steppe.data.decoded_files import Pixels

AREA = (0.7, 1.0)
JITTER = 0.3
MIRRORED, GREY = 0.5, 0.1
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Drawn(NamedTuple):
    """What is done to one picture.

    Attributes:
        top, left, height, width: of what is cut out, in pixels.
        mirrored: left and right are exchanged.
        order: in which brightness (0), contrast (1), saturation (2) and hue (3) are changed.
        factors: by how much, in that numbering; the hue is a shift in turns of the colour circle.
        grey: the colours are taken away at the end.
    """

    top: int
    left: int
    height: int
    width: int
    mirrored: bool
    order: tuple[int, int, int, int]
    factors: tuple[float, float, float, float]
    grey: bool


class TrainTransform:
    """DomainBed's training augmentation (Gulrajani & Lopez-Paz, 2021) of one picture, to float32 [3, size, size].

    A crop of 70 to 100 % of the area with a side ratio of 3:4 to 4:3, resized (bilinear, antialiased); a mirror image
    half of the time; brightness, contrast, saturation and hue jittered by up to 0.3, in random order; grey in one of
    ten; scaled to [0, 1]; then (x − mean) / std by channel.

    Args:
        size: side of the result, in pixels.
        mean, std: of each channel.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        # torchvision is imported where it is used: it takes seconds, and looking at data sets does not need it.
        from torchvision.transforms import v2  # type: ignore[import-untyped]

        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        self._crop = v2.RandomResizedCrop(size, scale=AREA)
        self._jitter = v2.ColorJitter(JITTER, JITTER, JITTER, JITTER)
        self._shift, self._scale = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))

    def __call__(self, picture: Image.Image | Pixels) -> Tensor:
        return self.write(picture, torch.empty((3, self.size, self.size)))

    def write(self, picture: Image.Image | Pixels, out: Tensor) -> Tensor:
        """The same, into ``out``, float32 [3, size, size], which is returned."""
        height, width = _size(picture)
        drawn = self.draw(height, width)
        bands = augmented(cut(picture, drawn), drawn, self.size).split()
        # As torchvision's ToDtype and Normalize compute it, to the bit.
        out.copy_(torch.from_numpy(np.stack([np.asarray(band) for band in bands])))
        return out.mul_(1 / 255).sub_(self._shift).div_(self._scale)

    def draw(self, height: int, width: int) -> Drawn:
        """Draws for a picture of this size, from torch's global generator."""
        box: dict[str, int] = self._crop.make_params([torch.empty((3, height, width), device="meta")])
        mirrored = bool(torch.rand(1) < MIRRORED)
        jitter: dict[str, Any] = self._jitter.make_params([])
        names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
        grey = bool(torch.rand(1) < GREY)
        return Drawn(
            **{name: int(value) for name, value in box.items()},
            mirrored=mirrored,
            order=tuple(jitter["fn_idx"].tolist()),
            factors=tuple(jitter[name] for name in names),
            grey=grey,
        )


def cut(picture: Image.Image | Pixels, drawn: Drawn) -> Image.Image:
    """The part that was drawn; of an array, which must be contiguous, nothing else is read."""
    if isinstance(picture, Image.Image):
        return picture.crop((drawn.left, drawn.top, drawn.left + drawn.width, drawn.top + drawn.height))
    row = 3 * picture.shape[1]
    first = drawn.top * row + 3 * drawn.left
    last = first + (drawn.height - 1) * row + 3 * drawn.width
    # Pillow reads the rows where they lie; through fromarray() they would be copied twice.
    part = picture.reshape(-1)[first:last].data
    return Image.frombytes("RGB", (drawn.width, drawn.height), part, "raw", "RGB", row, 1)


def augmented(picture: Image.Image, drawn: Drawn, size: int) -> Image.Image:
    """What was drawn, done to the part that was cut out; 8 bits a channel after every operation, as Pillow works."""
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    if drawn.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for number in drawn.order:
        picture = _ADJUST[number](picture, drawn.factors[number])
    return picture.convert("L").convert("RGB") if drawn.grey else picture


def _size(picture: Image.Image | Pixels) -> tuple[int, int]:
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    return picture.shape[0], picture.shape[1]


def _brightness(picture: Image.Image, factor: float) -> Image.Image:
    return Image.blend(_black(picture.size), picture, factor)


def _contrast(picture: Image.Image, factor: float) -> Image.Image:
    levels = np.asarray(picture.convert("L"))
    mean = int(float(levels.sum()) / levels.size + 0.5)
    return Image.blend(Image.new("RGB", picture.size, (mean, mean, mean)), picture, factor)


def _saturation(picture: Image.Image, factor: float) -> Image.Image:
    return Image.blend(picture.convert("L").convert("RGB"), picture, factor)


_ADJUST = (_brightness, _contrast, _saturation, hue.turned)


@lru_cache(8)
def _black(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size)
