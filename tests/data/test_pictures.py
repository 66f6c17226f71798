"""Every kind of picture file comes out as a person sees it."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import textwrap
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from steppe.data import ImageFolders, check_dataset, pictures
from steppe.data.pictures import MAX_PIXELS, decode, read_picture
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


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(file_format: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0))]
    content = saved(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(io.BytesIO(content)) as opened:
        assert getattr(opened, "n_frames", 1) == 3
    assert corners(decode(content)) == ((255, 0, 0), (255, 0, 0))


def cmyk(seed: int) -> tuple[Image.Image, np.ndarray]:
    """Patches of ink, and their colours as light through filters: (1 − ink)(1 − black)."""
    ink = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    share = ink / 255
    light = np.rint(255 * (1 - share[..., :3]) * (1 - share[..., 3:]))
    return Image.frombytes("CMYK", (64, 64), ink.tobytes()), light


def test_cmyk_in_a_tiff_and_in_a_jpeg() -> None:
    """In a JPEG the inks are stored inverted, as Adobe does; a reader that forgets that shows a negative."""
    picture, light = cmyk(3)
    exact = np.asarray(decode(saved(picture, "TIFF")), dtype=float)
    assert np.abs(exact - light).max() <= 1
    lossy = np.asarray(decode(saved(picture, "JPEG", quality=98, subsampling=0)), dtype=float)
    assert np.abs(lossy - light).mean() < 3


def png(rows: bytes, width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG written by hand, for what Pillow does not write; ``rows`` without the bytes for filters."""
    stride = len(rows) // height
    data = b"".join(b"\0" + rows[start : start + stride] for start in range(0, len(rows), stride))
    return png_of(zlib.compress(data), width, height, depth, colour)


def png_of(compressed: bytes, width: int, height: int, depth: int, colour: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def test_16_bit_colour() -> None:
    levels = np.random.default_rng(5).integers(0, 65536, (7, 9, 3), dtype=np.uint16)
    read = np.asarray(decode(png(levels.astype(">u2").tobytes(), 9, 7, 16, 2)), dtype=float)
    assert np.abs(read - levels / 257).max() <= 1


def test_16_bit_grey_of_any_size_is_scaled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.random.default_rng(6).integers(0, 65536, (23, 10), dtype=np.uint16)
    whole = np.asarray(decode(saved(Image.fromarray(levels), "PNG")))[..., 0]
    assert np.array_equal(whole, np.rint(levels / 257).astype(np.uint8))
    monkeypatch.setattr(pictures, "BLOCK", 30)
    assert np.array_equal(np.asarray(decode(saved(Image.fromarray(levels), "PNG")))[..., 0], whole)


@pytest.mark.parametrize(("file_format", "colours"), [("PNG", 2), ("PNG", 16), ("PNG", 200), ("GIF", 200), ("BMP", 16)])
def test_palettes(file_format: str, colours: int) -> None:
    palette = np.random.default_rng(colours).integers(0, 256, (colours, 3), dtype=np.uint8)
    index = (np.arange(20 * 30) % colours).reshape(20, 30).astype(np.uint8)
    picture = Image.frombytes("P", (30, 20), index.tobytes())
    picture.putpalette(palette.tobytes())
    assert np.array_equal(np.asarray(decode(saved(picture, file_format))), palette[index])


ONE_PIXEL = [
    *((file_format, "RGB") for file_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")),
    *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
    *(("TIFF", mode) for mode in ("1", "L", "CMYK", "I;16")),
    *(("JPEG", mode) for mode in ("L", "CMYK")),
]


@pytest.mark.parametrize(("file_format", "mode"), ONE_PIXEL)
def test_one_pixel(file_format: str, mode: str) -> None:
    read = decode(saved(Image.new(mode, (1, 1)), file_format))
    assert (read.size, read.mode) == ((1, 1), "RGB")


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


def half(file_format: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), file_format)
    return content[: len(content) * 2 // 3]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_what_is_there_of_a_truncated_picture_where_that_is_asked_for(file_format: str) -> None:
    read = decode(half(file_format), whole=False)
    assert (read.size, read.mode) == ((64, 64), "RGB")
    assert np.asarray(read)[:16].std() > 30
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "Pillow is as it was"
    with pytest.raises(OSError, match="truncated"):
        decode(half(file_format))
    with pytest.raises(OSError, match="cannot identify"):
        decode(b"<html>", whole=False)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.fixture(scope="module")
def hundred_megapixels() -> bytes:
    return saved(Image.linear_gradient("L").resize((10_000, 10_000)), "JPEG", quality=60)


def peak_memory(program: str) -> tuple[int, str]:
    """The most memory that a process of its own took for ``program``, in MB, and what it said on standard error.

    Not ``ru_maxrss``, in which a child begins with its parent's.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc")
    begin = "import sys, threading\nfrom pathlib import Path\nfrom steppe.data import pictures\n"
    end = "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    script = begin + textwrap.dedent(program) + end
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) // 1024, done.stderr


class TestLargePictures:
    def test_a_photograph_of_100_megapixels_opens_without_a_warning(self, hundred_megapixels: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = decode(hundred_megapixels)
        assert (read.size, read.mode) == ((10_000, 10_000), "RGB")
        assert read.getpixel((5_000, 9_999))[0] > 250 > 5 > read.getpixel((5_000, 0))[0]

    def test_large_ones_are_decoded_one_at_a_time(self, tmp_path: Path) -> None:
        """Four threads, as when a folder is checked: at once they would take four times 49 + 147 MB."""
        Image.linear_gradient("L").resize((7_000, 7_000)).save(tmp_path / "large.jpg", quality=60)
        program = f"""
            path = Path({str(tmp_path / "large.jpg")!r})
            problems = []
            def work():
                problems.append(pictures.decoding_problem(path, path.read_bytes()))
            threads = [threading.Thread(target=work) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            assert problems == [""] * 4, problems
        """
        assert peak_memory(program)[0] < 450

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_child_that_is_forked_meanwhile_does_not_wait_for_ever(self) -> None:
        content = saved(Image.new("RGB", (8, 8)), "PNG")
        with pytest.MonkeyPatch.context() as patch, pictures._locks.large, pictures._locks.switch:
            patch.setattr(pictures, "LARGE", 1)
            child = os.fork()
            if child == 0:
                decode(content)
                os._exit(0)
            timer = threading.Timer(60, os.kill, (child, 9))
            timer.start()
            _, status = os.waitpid(child, 0)
            timer.cancel()
        assert status == 0


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A whole PNG of 30,000 × 30,000 pixels, one bit each, in some 100 kB: 2.7 GB in RGB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 30_000 // 8)
    compressed = b"".join(packer.compress(row * 1000) for _ in range(30)) + packer.flush()
    return png_of(compressed, 30_000, 30_000, 1, 0)


class TestBombs:
    """Small files that claim to be huge."""

    def test_it_is_refused_by_its_head(self, bomb: bytes, tmp_path: Path) -> None:
        assert len(bomb) < 200_000
        path = tmp_path / "bomb.png"
        path.write_bytes(bomb)
        program = f"""
            try:
                pictures.read_picture(Path({str(path)!r}))
            except ValueError as error:
                print(error, file=sys.stderr)
        """
        megabytes, told = peak_memory(program)
        assert f"cannot decode the picture {path}: " in told
        assert "900000000 pixels" in told
        assert megabytes < 200

    @pytest.mark.parametrize("limit", [None, 10**10])
    def test_also_where_a_program_has_lifted_pillows_limit(
        self, limit: int | None, bomb: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(Image.DecompressionBombError, match=f"900,000,000 pixels, and more than {MAX_PIXELS:,}"):
            decode(bomb)

    def test_also_where_warnings_are_errors(self, tmp_path: Path) -> None:
        path = tmp_path / "claims.png"
        path.write_bytes(png_of(zlib.compress(b"little"), 15_000, 15_000, 8, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(SteppeError, match=f"cannot decode the picture {path}: .*225000000 pixels"):
                read_picture(path)

    def test_the_limit_is_between_cameras_and_bombs(self) -> None:
        assert 151_000_000 < MAX_PIXELS < 200_000_000
        assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS

    def test_a_check_names_it_and_goes_on(self, bomb: bytes, make_folders) -> None:
        root = make_folders()
        (root / "south/dog/3.png").write_bytes(bomb)
        (root / "west/cat/1.png").write_text("no")
        first, second = check_dataset(root)
        assert first.startswith(f"cannot decode the picture {root / 'south/dog/3.png'}: ")
        assert second.startswith(f"cannot decode the picture {root / 'west/cat/1.png'}: ")


def test_a_folder_of_all_kinds_is_one_data_set(tmp_path: Path) -> None:
    """Every file above, as a class of pictures that can be trained on."""
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "cmyk.jpg": saved(cmyk(1)[0], "JPEG"),
        "cmyk.tif": saved(cmyk(1)[0], "TIFF"),
        "deep.png": saved(Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000), "PNG"),
        "palette.png": saved(Image.new("P", (5, 4)), "PNG"),
        "turned.jpg": saved(Image.new("RGB", (8, 4)), "JPEG", exif=exif),
        "moving.gif": saved(
            Image.new("RGB", (4, 4)), "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), 9)]
        ),
        "dot.png": saved(Image.new("RGB", (1, 1)), "PNG"),
    }
    for domain in ("north", "south"):
        folder = tmp_path / "set" / domain / "things"
        folder.mkdir(parents=True)
        for name, content in kinds.items():
            (folder / name).write_bytes(content)
    dataset = ImageFolders(tmp_path / "set")
    assert dataset.problems() == ()
    assert dataset.size("north") == len(kinds)
    shown = {
        dataset.key("north", index).rpartition("/")[2]: dataset.image("north", index) for index in range(len(kinds))
    }
    assert {picture.mode for picture in shown.values()} == {"RGB"}
    assert (shown["turned.jpg"].size, shown["dot.png"].size) == ((4, 8), (1, 1))
