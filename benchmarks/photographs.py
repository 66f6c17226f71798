"""JPEGs of 500 to 700 pixels a side, made from the twenty photographs in the wheel of ``foolbox``.

    python benchmarks/photographs.py FOLDER --pictures 2000

Each is a square part of one of them (512 × 512 or 1024 × 683 pixels), of three quarters to all of its shorter side,
cut out at random and resized to 500 to 700 by 500 to 700 pixels; quality 90, chroma at half resolution, as Pillow
writes them. They lie in FOLDER/<domain>/<class>/, four domains, five classes, whatever they show: how long a picture
takes to decode depends on its size and its detail.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

DOMAINS = ("art", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse")


def originals() -> list[Image.Image]:
    """The twenty photographs."""
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install foolbox==3.3.4: the photographs are in its wheel")
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    return [Image.open(file).convert("RGB") for file in files]


def cutting(photograph: Image.Image, draw: np.random.Generator) -> Image.Image:
    """A part of it, resized."""
    width, height = draw.integers(500, 701, 2).tolist()
    shorter = min(photograph.size)
    side = int(draw.integers(shorter * 3 // 4, shorter + 1))
    left, top = (int(draw.integers(0, length - side + 1)) for length in photograph.size)
    part = photograph.crop((left, top, left + side, top + side))
    return part.resize((width, height), Image.Resampling.BICUBIC)


def make_photographs(root: Path, pictures: int) -> Path:
    """Writes ``pictures`` JPEGs, as many a domain and class, unless ``root`` is there already."""
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
                cutting(photograph, draw).save(folder / f"{number:04d}.jpg", quality=90)
    return root


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    arguments = parser.parse_args()
    print(make_photographs(arguments.folder, arguments.pictures))
