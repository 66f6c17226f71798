"""A miniature of MNIST in the official files: drawn digits, 28 × 28, in the IDX format."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from steppe.data import mnist_files

TRAIN, TEST = 240, 60


def drawn_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Different pictures of digits with their labels: uint8 [count, 28, 28] and [count]."""
    draws = np.random.default_rng(seed)
    labels = draws.permutation(np.arange(count) % 10).astype(np.uint8)
    pictures = np.zeros((count, 28, 28), np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        paper = Image.new("L", (28, 28))
        place = tuple(draws.integers(6, 10, size=2).tolist())
        ImageDraw.Draw(paper).text(
            place, str(label), fill=int(draws.integers(120, 256)), font=ImageFont.load_default(18)
        )
        picture[:] = np.asarray(paper)
        picture[0, :4] = draws.integers(0, 256, size=4)  # no two are equal
    return pictures, labels


def idx(array: np.ndarray) -> bytes:
    """The array in the IDX format: two zero bytes, 8 for unsigned bytes, the number of dimensions, each, the values."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def small_mnist(seed: int = 0) -> dict[str, np.ndarray]:
    """Official name → content of the four files."""
    train, test = drawn_digits(TRAIN, seed), drawn_digits(TEST, seed + 1)
    return {
        "train-images-idx3-ubyte": train[0],
        "train-labels-idx1-ubyte": train[1],
        "t10k-images-idx3-ubyte": test[0],
        "t10k-labels-idx1-ubyte": test[1],
    }


def write_mnist(
    folder: Path, contents: dict[str, np.ndarray] | None = None, *, dots: bool = False, compressed: bool = False
) -> Path:
    """Writes the files as the official site named them, as others do with a dot, raw or compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (contents or small_mnist()).items():
        file = name.replace("-idx", ".idx") if dots else name
        content = idx(array)
        if compressed:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)
    return folder


def pinned(monkeypatch: pytest.MonkeyPatch, contents: dict[str, np.ndarray] | None = None) -> None:
    """Lets the miniature count as MNIST in this test."""
    sums = {name: hashlib.md5(idx(array)).hexdigest() for name, array in (contents or small_mnist()).items()}
    monkeypatch.setattr(mnist_files, "MD5", sums)
