"""A cache of its own for every test, and small folders of pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

MakeFolders = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("STEPPE_CACHE", str(cache))
    return cache


def drawing(number: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A picture that no other number has."""
    colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(number * 0.37 % 1, 0.8, 0.9))
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).rectangle((2, 2, 3 + number % 19, 3 + number % 13), fill=colour)
    return picture


@pytest.fixture
def make_folders(tmp_path: Path) -> MakeFolders:
    """Writes ``root/<domain>/<class>/<n>.png`` with ``each`` pictures a class, all different, and returns the root."""

    def make(
        domains: Iterable[str] = ("north", "south", "west"),
        classes: Iterable[str] = ("cat", "dog"),
        each: int = 5,
        name: str = "photos",
    ) -> Path:
        number = 0
        for domain in domains:
            for class_name in classes:
                folder = tmp_path / name / domain / class_name
                folder.mkdir(parents=True)
                for index in range(each):
                    drawing(number).save(folder / f"{index}.png")
                    number += 1
        return tmp_path / name

    return make
