"""Contact sheets: every picture of a set on one page, for a person to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from steppe.data.domains import DomainDataset
from steppe.errors import SteppeError

HEADING = 20  # pixels above each class
CAPTION = 84  # pixels left of each row


def contact_sheet(
    dataset: DomainDataset,
    *,
    classes: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    per_class: int = 40,
    tile: int = 64,
) -> Image.Image:
    """One block a class, in it one row a domain: its first ``per_class`` pictures.

    Where the set knows its concepts a column shows one concept, so that a drawing out of place is seen at once.
    Pictures that are not tile × tile pixels are shrunk to fit, small ones enlarged by a whole number.

    Raises:
        SteppeError: unknown class or domain, or a picture that cannot be read.
    """
    for name in classes or ():
        dataset.check_class(name)
    for domain in domains or ():
        dataset.check_domain(domain)
    if tile < 1 or per_class < 1:
        raise SteppeError("a contact sheet needs at least one picture a class, of at least one pixel")
    chosen = classes or dataset.classes
    rows = domains or dataset.domains
    blocks = {name: _columns(dataset, dataset.classes.index(name), rows, per_class) for name in chosen}
    width = max(len(columns) for block in blocks.values() for columns in block.values())
    block_height = HEADING + len(rows) * tile
    page = Image.new("RGB", (CAPTION + width * tile, len(chosen) * block_height), "#eef1f5")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=13)
    for number, (name, block) in enumerate(blocks.items()):
        top = number * block_height
        pen.text((4, top + 2), f"{name} ({max(map(len, block.values()))})", fill="#16202c", font=font)
        for row, (domain, indices) in enumerate(block.items()):
            y = top + HEADING + row * tile
            pen.text((4, y + tile // 2 - 8), textwrap.shorten(domain, 12, placeholder="…"), fill="#16202c", font=font)
            for column, index in enumerate(indices):
                if index is not None:
                    page.paste(_fitted(dataset.image(domain, index), tile), (CAPTION + column * tile, y))
    return page


def _columns(dataset: DomainDataset, label: int, domains: Sequence[str], limit: int) -> dict[str, list[int | None]]:
    """domain → the index shown in each column; None where the domain does not have the column's concept."""
    members = {domain: np.flatnonzero(dataset.labels(domain) == label) for domain in domains}
    by_concept: dict[str, dict[str, int]] = {}
    for domain, indices in members.items():
        concepts = dataset.concepts(domain)
        if concepts is None:
            return {name: list(found[:limit].tolist()) for name, found in members.items()}
        for index in indices.tolist():
            by_concept.setdefault(str(concepts[index]), {})[domain] = index
    shown = list(by_concept.values())[:limit]
    return {domain: [places.get(domain) for places in shown] for domain in domains}


def _fitted(picture: Image.Image, tile: int) -> Image.Image:
    if picture.size == (tile, tile):
        return picture
    fitted = Image.new("RGB", (tile, tile), "white")
    times = tile // max(picture.size)
    if times > 1:
        picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    picture.thumbnail((tile, tile))
    fitted.paste(picture, ((tile - picture.width) // 2, (tile - picture.height) // 2))
    return fitted
