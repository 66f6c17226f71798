"""Every kind of picture file comes out as a person sees it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steppe.data.pictures import decode, read_picture
from steppe.errors import SteppeError


def saved(picture: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def halves(left: tuple[int, ...] | int, right: tuple[int, ...] | int, mode: str) -> Image.Image:
    picture = Image.new(mode, (8, 4), left)
    picture.paste(right, (4, 0, 8, 4))
    return picture


def corners(picture: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert picture.mode == "RGB"
    return picture.getpixel((0, 0)), picture.getpixel((picture.width - 1, picture.height - 1))


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_is_unchanged(file_format: str) -> None:
    picture = halves((200, 10, 30), (0, 99, 255), "RGB")
    assert np.array_equal(np.asarray(decode(saved(picture, file_format))), np.asarray(picture))


def test_webp_and_gif() -> None:
    picture = halves((200, 10, 30), (0, 99, 255), "RGB")
    assert corners(decode(saved(picture, "WEBP", lossless=True))) == ((200, 10, 30), (0, 99, 255))
    assert corners(decode(saved(picture, "GIF"))) == ((200, 10, 30), (0, 99, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """The same picture stored in each of the eight orientations comes out the same."""
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste((255, 0, 0), (0, 0, 16, 8))
    upright.paste((0, 0, 255), (16, 8, 32, 16))
    undone = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undone is None else upright.transpose(undone)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for file_format in ("JPEG", "PNG", "WEBP"):
        read = decode(saved(stored, file_format, exif=exif, quality=95))
        assert read.size == (32, 16)
        assert np.abs(np.asarray(read, dtype=int) - np.asarray(upright, dtype=int)).mean() < 6


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for file_format in ("PNG", "TIFF"):
        read = decode(saved(Image.fromarray(levels), file_format))
        assert np.asarray(read)[0, :, 0].tolist() == [0, 1, 128, 255]
        assert (np.asarray(read) == np.asarray(read)[..., :1]).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "depth.tiff"
    path.write_bytes(saved(Image.new(mode, (4, 4), 7), "TIFF"))
    with pytest.raises(SteppeError, match=r"depth\.tiff: its pixels are 32-bit numbers .* save it with 8 or 16 bits"):
        read_picture(path)


def test_transparent_is_white() -> None:
    clear, half = (0, 0, 0, 0), (0, 0, 0, 128)
    assert corners(decode(saved(halves(clear, half, "RGBA"), "PNG"))) == ((255, 255, 255), (127, 127, 127))
    assert corners(decode(saved(halves((0, 0), (90, 255), "LA"), "PNG"))) == ((255, 255, 255), (90, 90, 90))


def test_transparent_palette_entry_is_white() -> None:
    picture = Image.new("P", (8, 4), 0)
    picture.putpalette([0, 0, 0, 40, 80, 120])
    picture.paste(1, (4, 0, 8, 4))
    assert corners(decode(saved(picture, "PNG", transparency=0))) == ((255, 255, 255), (40, 80, 120))
    assert corners(decode(saved(picture, "PNG"))) == ((0, 0, 0), (40, 80, 120))


def test_transparent_colour_of_an_rgb_file_is_white() -> None:
    picture = halves((1, 2, 3), (40, 80, 120), "RGB")
    assert corners(decode(saved(picture, "PNG", transparency=(1, 2, 3)))) == ((255, 255, 255), (40, 80, 120))


def test_cmyk_grey_and_black_and_white() -> None:
    cmyk = decode(saved(halves((0, 0, 0, 0), (0, 0, 0, 255), "CMYK"), "JPEG", quality=95))
    assert np.abs(np.array(corners(cmyk)) - [[255] * 3, [0] * 3]).max() <= 3
    assert corners(decode(saved(halves(10, 250, "L"), "PNG"))) == ((10,) * 3, (250,) * 3)
    assert corners(decode(saved(halves(0, 1, "1"), "PNG"))) == ((0,) * 3, (255,) * 3)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert corners(decode(content))[0] == (255, 0, 0)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated_file_is_an_error_with_its_path(file_format: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), file_format)
    path = tmp_path / f"half.{file_format.lower()}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SteppeError, match=f"cannot decode the picture {path}"):
        read_picture(path)


@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>", b"\xff\xd8\xff", bytes(5000)])
def test_what_is_no_picture_is_an_error_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(SteppeError, match=f"{path}: it is not a picture in any known format"):
        read_picture(path)


def test_too_large_a_picture_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(saved(Image.new("RGB", (100, 100)), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SteppeError, match=r"bomb\.png"):
        read_picture(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match=r"gone\.png: No such file"):
        read_picture(tmp_path / "gone.png")
