"""Turning the hue of a picture in 8 bits, to the bit as Pillow does it through HSV, and four times as quickly.

Pillow computes HSV and back with floating-point divisions, pixel by pixel: more than any other part of DomainBed's
augmentation but the resizing. Both ways are functions of three bytes, so they can be looked up: two tables of 2²⁴
colours, 128 MB, filled by Pillow itself in about a second. They are made where they pay, and before worker processes
are forked, which then share them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Table = NDArray[np.uint32]

WORTHWHILE = 4096 * 224 * 224
"""Pixels from which tables pay: making them takes as long as Pillow takes for a thousand pictures of 224 × 224."""
COLOURS = 2**24
_SLAB = 2**20
_COLOUR = np.uint32(COLOURS - 1)

_tables: tuple[Table, Table] | None = None


def prepare(pixels: int) -> None:
    """Make the tables if so many pixels are to come, and they are not there yet."""
    global _tables
    if pixels >= WORTHWHILE and _tables is None:
        _tables = _made()


def turned(picture: Image.Image, turns: float) -> Image.Image:
    """The picture with its hue turned by ``turns`` of the colour circle, which has 256 steps."""
    shift = int(turns * 255) % 256
    if _tables is None:
        return picture.convert("HSV").point(_shifted(shift)).convert("RGB")
    to_hsv, to_rgb = _tables
    pixels = to_hsv.take(_packed(picture), mode="clip")
    pixels.view(np.uint8)[::4] += np.uint8(shift)
    return _unpacked(to_rgb.take(pixels, mode="clip"), picture.size)


def _made() -> tuple[Table, Table]:
    to_hsv, to_rgb = np.empty(COLOURS, "<u4"), np.empty(COLOURS, "<u4")
    for first in range(0, COLOURS, _SLAB):
        slab = slice(first, first + _SLAB)
        size = (1024, _SLAB // 1024)
        colours = _unpacked(np.arange(first, first + _SLAB, dtype="<u4"), size)
        to_hsv[slab] = _packed(Image.merge("RGB", colours.convert("HSV").split()))
        to_rgb[slab] = _packed(Image.merge("HSV", colours.split()).convert("RGB"))
    return to_hsv, to_rgb


def _packed(picture: Image.Image) -> Table:
    """Three bands of 8 bits as one number a pixel, the first in its lowest byte."""
    return np.frombuffer(picture.tobytes("raw", "RGBX"), "<u4") & _COLOUR


def _unpacked(pixels: Table, size: tuple[int, int]) -> Image.Image:
    return Image.frombuffer("RGBX", size, pixels, "raw", "RGBX", 0, 1).convert("RGB")


@cache
def _shifted(shift: int) -> list[int]:
    levels = list(range(256))
    return levels[shift:] + levels[:shift] + levels + levels
