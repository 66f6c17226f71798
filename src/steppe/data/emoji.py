"""EmojiStyles: ten classes of things, each thing drawn in four styles (domains), 64 × 64.

On disk a set is a folder with ``manifest.json`` and one sprite sheet a style: a lossless WebP in which picture i
stands in row i // columns and column i % columns. All sheets show the same things in the same order, so that index i
is the same code point in every domain. The balanced part ships inside the package; ``steppe data fetch emoji`` makes
the whole set.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steppe.data.cache import cache_directory
from steppe.data.domains import DomainDataset, Indices, Names
from steppe.errors import SteppeError

FORMAT_VERSION = 1
EMBEDDED = Path(__file__).parent / "emoji_styles"


def full_directory() -> Path:
    """Where ``steppe data fetch emoji`` puts the whole set unless told otherwise."""
    return cache_directory() / "emoji-full"


@dataclass(frozen=True)
class Drawing:
    """One thing of the set: code points (``1f9d1-200d-1f692``: lower case, without fe0f), English name, class.

    ``concept`` is the code points of the first thing of its class that some style draws in (nearly) the same way, most
    often its own: in line art a police car and a taxi are one picture, and must not be on two sides of a strict split.
    """

    code_points: str
    name: str
    class_name: str
    concept: str


class EmojiStyles(DomainDataset):
    """The set in ``directory``; sheets are decoded on first use and held in memory (4.7 MB a style for the balanced
    part).

    A picture's key is its code points.

    Raises:
        SteppeError: there is no complete set in ``directory``, or (on first use) a sheet is not the manifest's.
    """

    licence = (
        "fluent: Microsoft, MIT; noto: Google, Apache-2.0; twemoji: Twitter and contributors, CC BY 4.0; "
        "line: the OpenMoji project, CC BY-SA 4.0"
    )

    def __init__(self, directory: Path, *, name: str, spec: str, remedy: str) -> None:
        self.name = name
        self.spec = spec
        self.directory = directory
        self._remedy = remedy
        manifest = _read_manifest(directory, remedy)
        self.side: int = manifest["side"]
        self.classes = tuple(manifest["classes"])
        self.domains = tuple(manifest["styles"])
        self.drawings = tuple(Drawing(*row) for row in manifest["drawings"])
        self._digests = {style: str(entry["sha256"]) for style, entry in manifest["styles"].items()}
        number = {class_name: label for label, class_name in enumerate(self.classes)}
        self._labels = np.array([number[drawing.class_name] for drawing in self.drawings], dtype=np.int64)
        self._pictures: dict[str, NDArray[np.uint8]] = {}

    def labels(self, domain: str) -> Indices:
        self.check_domain(domain)
        return self._labels.copy()

    def concepts(self, domain: str) -> Names:
        self.check_domain(domain)
        return np.array([drawing.concept for drawing in self.drawings])

    def key(self, domain: str, index: int) -> str:
        self.check_domain(domain)
        return self.drawings[index].code_points

    def image(self, domain: str, index: int) -> Image.Image:
        return Image.fromarray(self._sheet(domain)[index])

    def problems(self, *, progress: bool = False) -> tuple[str, ...]:
        """Reads every sheet, which checks all its pictures at once."""
        found = []
        for domain in self.domains:
            try:
                self._sheet(domain)
            except SteppeError as error:
                found.append(str(error))
        return tuple(found)

    def fingerprint(self) -> str:
        identity = [
            FORMAT_VERSION,
            self.classes,
            self._digests,
            [(drawing.code_points, drawing.class_name, drawing.concept) for drawing in self.drawings],
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that is spawned reads the sheets itself; that is cheaper than sending their pixels.
        return {**self.__dict__, "_pictures": {}}

    def _sheet(self, domain: str) -> NDArray[np.uint8]:
        pictures = self._pictures.get(domain)
        if pictures is None:
            pictures = self._pictures[domain] = self._read_sheet(domain)
        return pictures

    def _read_sheet(self, domain: str) -> NDArray[np.uint8]:
        """The pictures of ``domain``, uint8 [n, side, side, 3], held against the manifest's checksum of the pixels."""
        self.check_domain(domain)
        path = self.directory / f"{domain}.webp"
        try:
            with Image.open(path) as sheet:
                pixels = np.asarray(sheet.convert("RGB"))
        except OSError as error:
            raise SteppeError(f"cannot read {path}: {error}; {self._remedy}") from error
        if pixel_digest(pixels) != self._digests[domain]:
            raise SteppeError(f"{path} is not the sheet that its manifest describes; {self._remedy}")
        rows, columns = pixels.shape[0] // self.side, pixels.shape[1] // self.side
        tiles = pixels.reshape(rows, self.side, columns, self.side, 3).swapaxes(1, 2)
        return np.ascontiguousarray(tiles.reshape(rows * columns, self.side, self.side, 3)[: len(self.drawings)])


def pixel_digest(pixels: NDArray[np.uint8]) -> str:
    """The sha256 of decoded pixels, not of a file: another encoder's file of the same pictures is the same data."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


@cache
def embedded_emoji() -> EmojiStyles:
    """The balanced part that ships with steppe: at most 40 things a class, 1,532 pictures."""
    return EmojiStyles(EMBEDDED, name="emoji", spec="emoji", remedy="install steppe again")


def full_emoji(directory: Path | None = None) -> EmojiStyles:
    """The whole set, every code point of ``emoji_classes.csv``, from where ``steppe data fetch emoji`` put it."""
    remedy = "run `steppe data fetch emoji`" + ("" if directory is None else f" with --out {directory}")
    spec = "emoji-full" if directory is None else str(directory)
    return EmojiStyles(directory or full_directory(), name="emoji-full", spec=spec, remedy=remedy)


def is_emoji_directory(directory: Path) -> bool:
    """Whether ``directory`` holds a set as ``steppe data fetch emoji --out`` writes it."""
    return (directory / "manifest.json").is_file() and (directory / "fluent.webp").is_file()


def _read_manifest(directory: Path, remedy: str) -> dict[str, Any]:
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SteppeError(f"there is no EmojiStyles set in {directory}; {remedy}") from error
    except (OSError, ValueError) as error:
        raise SteppeError(f"cannot read {path}: {error}; {remedy}") from error
    if manifest.get("format") != FORMAT_VERSION:
        raise SteppeError(f"{path} has format {manifest.get('format')!r}, this steppe reads {FORMAT_VERSION}; {remedy}")
    return dict(manifest)
