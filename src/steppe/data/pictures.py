"""Any picture file to RGB, as a person would see it."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from steppe.errors import SteppeError

# What torchvision's ImageFolder takes, so that the order of a folder's pictures (and with it DomainBed's split) is
# the same, and GIF.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"})

# Twice 89,478,485, where Pillow refuses a picture unless it is told otherwise: half a gigabyte in RGB. The largest
# cameras have some 150 megapixels; what claims more is taken for a decompression bomb.
MAX_PIXELS = 178_956_970
LARGE = 2**25  # pixels above which pictures are decoded one at a time, whatever the number of threads
BLOCK = 2**22  # pixels of a picture with 16 bits that are scaled at a time

# Pillow warns from half of that on, which cameras do reach. One limit, an error, holds here; what a program has set
# for itself stays.
if Image.MAX_IMAGE_PIXELS == MAX_PIXELS // 2:
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# What Pillow raises for content that is no picture: for some broken headers a SyntaxError, else mostly an OSError.
UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where a program has made warnings errors
)


def read_picture(path: Path, *, whole: bool = True) -> Image.Image:
    """The picture in ``path``, upright and in RGB; see :func:`decode` for how.

    Raises:
        SteppeError: the file cannot be read or decoded; the message has its path.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SteppeError(f"cannot read the picture {path}: {error.strerror or error}") from error
    try:
        return decode(content, whole=whole)
    except UNDECODABLE as error:
        raise SteppeError(_undecodable(path, error)) from error


def decoding_problem(path: Path, content: bytes) -> str:
    """Why ``content``, read from ``path``, is no whole picture; empty when it is one."""
    try:
        decode(content)
    except UNDECODABLE as error:
        return _undecodable(path, error)
    return ""


def decode(content: bytes, *, whole: bool = True) -> Image.Image:
    """A picture file's content as RGB, 8 bits a channel.

    The EXIF orientation is applied. Of an animation the first frame is taken. What is transparent becomes white. Grey
    with 16 bits is scaled, 65535 to 255, not clipped; a picture that uses only the low 12 bits stays dark, for
    nothing in the file says otherwise. CMYK, palettes and the rest are converted by Pillow.

    Pictures of up to :data:`MAX_PIXELS` are decoded; from :data:`LARGE` on one at a time, so that threads that each
    meet a large one do not fill the memory. The size is read from the head, before anything is unpacked.

    Args:
        whole: where the data end too soon, raise. Otherwise the picture is read as far as it goes.

    Raises:
        OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError: the content is not a whole picture that
            Pillow reads, it is too large, or its pixels are 32-bit numbers, for which no white is defined.
    """
    try:
        return _decode(content)
    except UNDECODABLE:
        if whole:
            raise
    with _locks.switch:  # Pillow has one switch for the whole process
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return _decode(content)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


class _Locks:
    """Held by the threads of this process only: a child that is forked begins with locks of its own."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.large = threading.Lock()
        self.switch = threading.Lock()


_locks = _Locks()


def _decode(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as opened:
        pixels = opened.width * opened.height
        if pixels > MAX_PIXELS:
            raise Image.DecompressionBombError(
                f"it claims {pixels:,} pixels, and more than {MAX_PIXELS:,} are not read"
            )
        with _locks.large if pixels > LARGE else contextlib.nullcontext():
            opened.load()
            # A JPEG without an EXIF block has no orientation, and looking for one costs as much as decoding a small
            # picture.
            if opened.format != "JPEG" or "exif" in opened.info:
                ImageOps.exif_transpose(opened, in_place=True)
            return _to_rgb(opened, opened.format)


def _to_rgb(picture: Image.Image, file_format: str | None) -> Image.Image:
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture
    if mode.startswith("I;16") or (mode == "I" and file_format in ("PNG", "PPM")):
        return Image.fromarray(_scaled(np.asarray(picture))).convert("RGB")
    if mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {mode}); save it with 8 or 16 bits a channel")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return picture.convert("RGB")


def _scaled(levels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16 bits to 8: Pillow's own conversion clips at 255, which turns most of such a picture white."""
    scaled = np.empty(levels.shape, dtype=np.uint8)
    rows = max(1, BLOCK // levels.shape[1])
    for start in range(0, len(levels), rows):
        block = levels[start : start + rows].astype(np.uint32)
        scaled[start : start + rows] = (block * 255 + 32767) // 65535
    return scaled


def _undecodable(path: Path, error: Exception) -> str:
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "it is not a picture in any known format" if unknown else str(error)
    return f"cannot decode the picture {path}: {reason}"
