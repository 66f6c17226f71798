"""Any picture file to RGB, as a person would see it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from steppe.errors import SteppeError

# What torchvision's ImageFolder takes, so that the order of a folder's pictures (and with it DomainBed's split) is
# the same, and GIF.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"})

# What Pillow raises for content that is no picture: for some broken headers a SyntaxError, else mostly an OSError.
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def read_picture(path: Path) -> Image.Image:
    """The picture in ``path``, upright and in RGB; see :func:`decode` for how.

    Raises:
        SteppeError: the file cannot be read or decoded; the message has its path.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SteppeError(f"cannot read the picture {path}: {error.strerror or error}") from error
    try:
        return decode(content)
    except UNDECODABLE as error:
        raise SteppeError(_undecodable(path, error)) from error


def decoding_problem(path: Path, content: bytes) -> str:
    """Why ``content``, read from ``path``, is no whole picture; empty when it is one."""
    try:
        decode(content)
    except UNDECODABLE as error:
        return _undecodable(path, error)
    return ""


def decode(content: bytes) -> Image.Image:
    """A picture file's content as RGB, 8 bits a channel.

    The EXIF orientation is applied. Of an animation the first frame is taken. What is transparent becomes white. Grey
    with 16 bits is scaled, 65535 to 255, not clipped; a picture that uses only the low 12 bits stays dark, for
    nothing in the file says otherwise. CMYK, palettes and the rest are converted by Pillow.

    Raises:
        OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError: the content is not a whole picture that
            Pillow reads, or its pixels are 32-bit numbers, for which no white is defined.
    """
    with Image.open(io.BytesIO(content)) as opened:
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
        # Pillow's own conversion to 8 bits clips at 255, which turns most of a 16-bit picture white.
        levels = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {mode}); save it with 8 or 16 bits a channel")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return picture.convert("RGB")


def _undecodable(path: Path, error: Exception) -> str:
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "it is not a picture in any known format" if unknown else str(error)
    return f"cannot decode the picture {path}: {reason}"
