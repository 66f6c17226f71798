"""Opening by name or folder, the list, the contact sheet and the cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_mnist import write_mnist

from steppe.data import RotatedMNIST, check_dataset, contact_sheet, dataset_names, list_datasets, open_dataset
from steppe.data.cache import cache_directory, write_atomically
from steppe.errors import SteppeError


def test_names() -> None:
    assert dataset_names()[:4] == ("emoji", "emoji-full", "rotated-mnist", "colored-mnist")
    assert dataset_names()[4:] == ("pacs", "vlcs", "officehome", "terra-incognita", "domainnet")
    dataset = open_dataset("emoji")
    assert (dataset.name, dataset.spec) == ("emoji", "emoji")
    assert check_dataset("emoji") == ()


def test_list() -> None:
    embedded, full, *mnist = list_datasets()[:4]
    assert (embedded.name, embedded.classes, embedded.pictures) == ("emoji", 10, 1532)
    assert embedded.status == "ships with steppe"
    assert "CC BY-SA 4.0" in embedded.licence
    assert (full.name, full.classes, full.pictures) == ("emoji-full", None, None)
    assert full.domains == embedded.domains
    assert [(row.name, len(row.domains), row.classes, row.pictures, row.status) for row in mnist] == [
        ("rotated-mnist", 6, None, None, "not here: steppe data fetch mnist"),
        ("colored-mnist", 3, None, None, "not here: steppe data fetch mnist"),
    ]


def test_unknown_name_has_near_matches() -> None:
    with pytest.raises(SteppeError, match=r"unknown data set 'emojis'; did you mean 'emoji'.*nor is there a folder"):
        open_dataset("emojis")


def test_missing_folder(tmp_path: Path) -> None:
    for spec in (tmp_path / "none", str(tmp_path / "none")):
        with pytest.raises(SteppeError, match=f"there is no folder {tmp_path}/none"):
            open_dataset(spec)
    assert check_dataset(tmp_path / "none") == (f"there is no folder {tmp_path}/none",)


def test_a_folder_named_like_a_data_set_is_reached_by_its_path(make_folders, monkeypatch) -> None:
    root = make_folders(name="emoji")
    monkeypatch.chdir(root.parent)
    assert open_dataset("emoji").size("line") == 383
    assert open_dataset("./emoji").domains == ("north", "south", "west")
    assert open_dataset(Path("emoji")).domains == ("north", "south", "west")


class TestContactSheet:
    def test_shows_every_picture_in_its_place(self) -> None:
        emoji = open_dataset("emoji")
        page = np.asarray(contact_sheet(emoji, classes=["building"]))
        shown = [page[20 + 64 * row :][:64, 84:] for row in range(4)]
        members = np.flatnonzero(emoji.labels("line") == emoji.classes.index("building"))
        for row, style in enumerate(emoji.domains):
            expected = np.concatenate([np.asarray(emoji.image(style, int(index))) for index in members], axis=1)
            assert np.array_equal(shown[row], expected)

    def test_of_folders_shrinks_to_fit(self, make_folders) -> None:
        root = make_folders(each=3)
        wide = Image.new("RGB", (400, 100), (10, 20, 200))
        wide.save(root / "north/cat/0.png")
        page = contact_sheet(open_dataset(root), domains=["north"], per_class=2, tile=32)
        assert page.size == (84 + 2 * 32, 2 * (20 + 32))
        assert page.getpixel((84 + 16, 20 + 16)) == (10, 20, 200)
        assert page.getpixel((84 + 16, 20 + 4)) == (255, 255, 255)

    def test_small_pictures_are_enlarged_by_a_whole_number(self, tmp_path: Path) -> None:
        digits = RotatedMNIST(write_mnist(tmp_path / "mnist"))
        page = np.asarray(contact_sheet(digits, classes=["4"], domains=["0"], per_class=3))
        members = np.flatnonzero(digits.labels("0") == 4)[:3]
        for column, index in enumerate(members.tolist()):
            picture = np.asarray(digits.image("0", index)).repeat(2, axis=0).repeat(2, axis=1)
            assert np.array_equal(page[24:80, 88 + 64 * column :][:, :56], picture)
            assert (page[20:24, 84 + 64 * column :][:, :64] == 255).all()

    def test_bad_requests(self) -> None:
        emoji = open_dataset("emoji")
        with pytest.raises(SteppeError, match="did you mean 'mammal'"):
            contact_sheet(emoji, classes=["mammals"])
        with pytest.raises(SteppeError, match="did you mean 'line'"):
            contact_sheet(emoji, domains=["lines"])
        with pytest.raises(SteppeError, match="at least one picture"):
            contact_sheet(emoji, per_class=0)


class TestCache:
    def test_where(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("STEPPE_CACHE", str(tmp_path / "own"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_directory() == tmp_path / "own"
        monkeypatch.delenv("STEPPE_CACHE")
        assert cache_directory() == tmp_path / "shared" / "steppe"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert cache_directory() == tmp_path / "home" / ".cache" / "steppe"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_directory() == tmp_path / "home" / ".cache" / "steppe"

    def test_write_is_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "deep" / "file"
        write_atomically(path, b"first")
        assert path.read_bytes() == b"first"
        monkeypatch.setattr(
            os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, b"second")
        assert path.read_bytes() == b"first"
        assert [entry.name for entry in path.parent.iterdir()] == ["file"]
