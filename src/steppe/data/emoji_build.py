"""Makes EmojiStyles from the published packages: draws every thing in every style and writes the sprite sheets.

``steppe data fetch emoji`` calls :func:`fetch_emoji`. The balanced part inside the package is made, in a checkout, by
``python -c "from steppe.data.emoji_build import rebuild_embedded; rebuild_embedded()"``.

The four styles go through one path, so that they differ by what was drawn and not by how it was resized: 256 × 256
(vectors rendered at that size), set on white, averaged over 4 × 4 pixels. Sheets are lossless WebP: 2.8 MB where
quality 90 takes 1.5, but the same pixels for everyone, and without the blurred colour edges of lossy coding, which line
art would not have: an artefact should not tell the domains apart.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from steppe.data.cache import write_atomically
from steppe.data.emoji import EMBEDDED, FORMAT_VERSION, Drawing, full_directory, pixel_digest
from steppe.data.emoji_sources import PACKAGES, Drawn, Vector, locate, read
from steppe.errors import SteppeError

SIDE = 64
OVERSAMPLING = 4
MARGIN = 16  # oversampled pixels drawn around a vector's nominal picture, to see whether it reaches over the edge
OVERFLOW = 4 * OVERSAMPLING**2  # opaque pixels in the margin above which it does: four of the finished picture
BLANK = 0.02  # share of inked pixels below which a picture counts as blank
ALIKE = 6.0  # root mean square difference, of 255, below which two pictures are the same drawing
BALANCED = 40  # things a class in the part that ships


def fetch_emoji(out: Path | None = None, packages: Path | None = None) -> Path:
    """Makes the whole set (every code point of ``emoji_classes.csv`` in four styles) and returns its folder.

    Args:
        out: where to; by default the cache, where ``open_dataset("emoji-full")`` looks.
        packages: a folder with the packages' tarballs; by default npm fetches them (25 MB).

    Raises:
        SteppeError: npm or resvg_py is missing, a checksum is wrong, a picture is blank, or the folder cannot be
            written.
    """
    directory = full_directory() if out is None else out
    _build(class_table(), directory, packages)
    shutil.copytree(EMBEDDED / "LICENSES", directory / "LICENSES", dirs_exist_ok=True)
    return directory


def rebuild_embedded(packages: Path | None = None, directory: Path = EMBEDDED) -> None:
    """Makes the balanced part that ships inside the package, into ``directory``."""
    _build(balanced(class_table()), directory, packages)


def class_table() -> list[Drawing]:
    """All things of ``emoji_classes.csv``, ordered by class, within a class as in the table (Unicode's order)."""
    with (EMBEDDED / "emoji_classes.csv").open(encoding="utf-8", newline="") as file:
        drawings = [
            Drawing(row["code_points"], row["name"], row["class"], concept=row["code_points"])
            for row in csv.DictReader(file)
        ]
    return sorted(drawings, key=lambda drawing: drawing.class_name)


def balanced(drawings: Iterable[Drawing], limit: int = BALANCED) -> list[Drawing]:
    """At most ``limit`` things of each class, evenly spaced: neighbours in Unicode's order look alike."""
    by_class: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        by_class.setdefault(drawing.class_name, []).append(drawing)
    kept = []
    for members in by_class.values():
        count = min(limit, len(members))
        kept += [members[i * len(members) // count] for i in range(count)]
    return kept


def with_shared_concepts(
    drawings: Sequence[Drawing], pictures: Mapping[str, Sequence[NDArray[np.uint8]]]
) -> list[Drawing]:
    """The drawings, each with the concept of the first of its class that a style draws in the same way.

    Args:
        pictures: style → the pictures of ``drawings``.
    """
    flat = {style: np.stack(shown).reshape(len(drawings), -1).astype(np.float32) for style, shown in pictures.items()}
    result: list[Drawing] = []
    for index, drawing in enumerate(drawings):
        earlier = [place for place, other in enumerate(result) if other.class_name == drawing.class_name]
        for style in flat if earlier else ():
            difference = np.sqrt(np.square(flat[style][earlier] - flat[style][index]).mean(axis=1))
            if difference.min() < ALIKE:
                drawing = dataclasses.replace(drawing, concept=result[earlier[int(difference.argmin())]].concept)
                break
        result.append(drawing)
    return result


def draw(drawn: Drawn) -> NDArray[np.uint8]:
    """The picture on white, uint8 [64, 64, 3], whole: a vector that reaches over its own edge is drawn smaller."""
    picture = _render(drawn) if isinstance(drawn, Vector) else drawn
    side = max(picture.size)
    paper = Image.new("RGBA", (side, side), "white")
    paper.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(paper.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def ink(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels of uint8 [..., 3] differ visibly from white."""
    return np.asarray(picture.min(axis=-1) < 224)


def _render(vector: Vector) -> Image.Image:
    try:
        import resvg_py
    except ImportError as error:
        raise SteppeError("resvg_py draws the SVG pictures and is not installed: `pip install resvg_py`") from error
    inner = SIDE * OVERSAMPLING
    side = inner + 2 * MARGIN
    unit = max(vector.width, vector.height) / inner
    left, top = ((extent - side * unit) / 2 for extent in (vector.width, vector.height))
    # The size stands in the document: resvg rounds a size that it takes from a viewBox, and with it the scale.
    document = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{left} {top} {side * unit} {side * unit}">{vector.body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=document, skip_system_fonts=True)
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGBA")
    opaque = np.asarray(picture)[..., 3] > 127
    # The nominal picture need not be square; what lies above and below it in the square is padding, no overflow.
    overflow = opaque.sum() - opaque[MARGIN:-MARGIN, MARGIN:-MARGIN].sum()
    return picture if overflow > OVERFLOW else picture.crop((MARGIN, MARGIN, side - MARGIN, side - MARGIN))


def _build(drawings: Sequence[Drawing], directory: Path, packages: Path | None) -> None:
    wanted = {drawing.code_points for drawing in drawings}
    styles: dict[str, dict[str, str]] = {}
    pictures: dict[str, list[NDArray[np.uint8]]] = {}
    with tempfile.TemporaryDirectory(prefix="steppe-") as scratch, Progress(transient=True) as progress:
        task = progress.add_task("packages", total=len(PACKAGES) * (1 + len(drawings)))
        for package in PACKAGES:
            progress.update(task, description=f"{package.style}: {package.name}")
            sources = read(package, locate(package, packages, Path(scratch)), wanted)
            progress.advance(task)
            pictures[package.style] = []
            for drawing in drawings:
                pictures[package.style].append(_draw_checked(drawing, package.style, sources[drawing.code_points]))
                progress.advance(task)
            sheet = _sheet(pictures[package.style])
            _write(directory / f"{package.style}.webp", _encode(sheet))
            styles[package.style] = {
                "sha256": pixel_digest(sheet),
                "package": f"{package.name}@{package.version}",
                "integrity": package.integrity,
                "licence": package.licence,
            }
    # Last, so that a set without a manifest is an unfinished one.
    _write(directory / "manifest.json", _manifest(with_shared_concepts(drawings, pictures), styles).encode())


def _draw_checked(drawing: Drawing, style: str, drawn: Drawn) -> NDArray[np.uint8]:
    picture = draw(drawn)
    share = float(ink(picture).mean())
    if share < BLANK:
        raise SteppeError(
            f"{drawing.name} ({drawing.code_points}) is blank in style {style!r} ({share:.1%} ink); "
            "take it out of emoji_classes.csv"
        )
    return picture


def _sheet(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The pictures in rows, about as many rows as columns; unused places are white."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = np.full((rows * SIDE, columns * SIDE, 3), 255, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = picture
    return sheet


def _encode(sheet: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "WEBP", lossless=True, quality=100, method=5)  # quality is effort here
    return file.getvalue()


def _manifest(drawings: Sequence[Drawing], styles: dict[str, dict[str, str]]) -> str:
    head = {
        "format": FORMAT_VERSION,
        "side": SIDE,
        "made_with": {name: importlib.metadata.version(name) for name in ("pillow", "resvg_py")},
        "classes": sorted({drawing.class_name for drawing in drawings}),
        "styles": styles,
    }
    rows = (dataclasses.astuple(drawing) for drawing in drawings)
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    return json.dumps(head, indent=1).removesuffix("\n}") + f',\n "drawings": [\n{lines}\n ]\n}}\n'


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise SteppeError(f"cannot write {path}: {error.strerror or error}") from error
