"""Folders of small pictures that differ in every pixel, and what a child process does with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from steppe.data import DomainDataset, ImageFolders
from steppe.data.pictures import read_picture


def make_photos(root: Path, *, each: int = 4, size: tuple[int, int] = (40, 30), seed: int = 0) -> ImageFolders:
    """``root/<north|south>/<cat|dog>/<n>.jpg``, ``each`` of a class, all of another size and content."""
    draw = np.random.default_rng(seed)
    for domain in ("north", "south"):
        for name in ("cat", "dog"):
            folder = root / domain / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(each):
                save_noise(folder / f"{number:03d}.jpg", (size[0] + number % 5, size[1] + number % 3), draw)
    return ImageFolders(root)


def save_noise(path: Path, size: tuple[int, int], draw: np.random.Generator) -> None:
    """A picture of smooth noise."""
    small = draw.integers(0, 256, (size[1] // 8 + 2, size[0] // 8 + 2, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def reader(photos: ImageFolders) -> Callable[[str], Image.Image]:
    """key → picture, from the file."""
    return lambda key: read_picture(photos.root / key)


def everything(dataset: DomainDataset) -> dict[tuple[str, int], bytes]:
    """The size and pixels of every picture."""
    return {
        (domain, index): str(picture.size).encode() + picture.tobytes()
        for domain in dataset.domains
        for index in range(dataset.size(domain))
        for picture in [dataset.image(domain, index)]
    }


def run_python(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A child that runs ``program`` with the modules of this folder; it answers on its standard output."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def dying(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """``call``, before which the process kills itself once ``left`` has been counted down."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)

    return wrapped


def half_written(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """A writing call that is killed after half of its bytes."""

    def wrapped(writer: Any, content: memoryview) -> Any:
        left[0] -= 1
        if left[0] < 0:
            call(writer, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(writer, content)

    return wrapped
