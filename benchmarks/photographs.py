"""JPEGs made from the twenty photographs in the wheel of ``foolbox``: 500 to 700 pixels a side, or as large as wanted.

    python benchmarks/photographs.py FOLDER --pictures 2000
    python benchmarks/photographs.py LARGE --pictures 120 --side 2000 2600

Each is a square part of one of them (512 × 512 or 1024 × 683 pixels), of three quarters to all of its shorter side,
cut out at random and resized to 500 to 700 by 500 to 700 pixels, or what --side says; quality 90, chroma at half
resolution, as Pillow writes them. They lie in FOLDER/<domain>/<class>/, four domains, five classes, whatever they show:
how long a picture takes to decode depends on its size and its detail.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

DOMAINS = ("art", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse")
SIDE = (500, 700)
"""The shortest and the longest side, in pixels."""


def originals() -> list[Image.Image]:
    """The twenty photographs."""
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install foolbox==3.3.4: the photographs are in its wheel")
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    return [Image.open(file).convert("RGB") for file in files]


def cutting(photograph: Image.Image, draw: np.random.Generator, side_range: tuple[int, int]) -> Image.Image:
    """A part of it, resized."""
    width, height = draw.integers(side_range[0], side_range[1] + 1, 2).tolist()
    shorter = min(photograph.size)
    side = int(draw.integers(shorter * 3 // 4, shorter + 1))
    left, top = (int(draw.integers(0, length - side + 1)) for length in photograph.size)
    part = photograph.crop((left, top, left + side, top + side))
    return part.resize((width, height), Image.Resampling.BICUBIC)


def make_photographs(root: Path, pictures: int, side: tuple[int, int] = SIDE) -> Path:
    """Writes ``pictures`` JPEGs with sides in this range, as many a domain and class, unless ``root`` is there."""
    if root.exists():
        return root
    photographs = originals()
    draw = np.random.default_rng(0)
    for domain in DOMAINS:
        for name in CLASSES:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(pictures // (len(DOMAINS) * len(CLASSES))):
                photograph = photographs[int(draw.integers(len(photographs)))]
                cutting(photograph, draw, side).save(folder / f"{number:04d}.jpg", quality=90)
    return root


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--side", type=int, nargs=2, default=SIDE, metavar=("SHORTEST", "LONGEST"))
    arguments = parser.parse_args()
    print(make_photographs(arguments.folder, arguments.pictures, tuple(arguments.side)))
