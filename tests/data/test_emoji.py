"""The pictures that ship: all there, none blank or cut off, the same things in every style."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from steppe.data import make_splits, open_dataset
from steppe.data.emoji import EMBEDDED, EmojiStyles, full_emoji
from steppe.data.emoji_build import ink
from steppe.errors import SteppeError

STYLES = ("fluent", "noto", "twemoji", "line")


@pytest.fixture(scope="module")
def emoji() -> EmojiStyles:
    dataset = open_dataset("emoji")
    assert isinstance(dataset, EmojiStyles)
    return dataset


@pytest.fixture(scope="module")
def table() -> dict[str, str]:
    with (EMBEDDED / "emoji_classes.csv").open(encoding="utf-8", newline="") as file:
        return {row["code_points"]: row["class"] for row in csv.DictReader(file)}


def pictures(emoji: EmojiStyles, style: str) -> np.ndarray:
    return np.stack([np.asarray(emoji.image(style, index)) for index in range(emoji.size(style))])


def test_counts(emoji: EmojiStyles) -> None:
    assert emoji.domains == STYLES
    assert sum(emoji.size(style) for style in STYLES) == 1532
    counts = {"bird_fish_bug": 40, "building": 27, "clothing": 40, "dish": 40, "face": 40, "fruit_veg": 36}
    counts |= {"hand": 40, "mammal": 40, "person": 40, "vehicle": 40}
    assert dict(zip(emoji.classes, np.bincount(emoji.labels("line")).tolist(), strict=True)) == counts


def test_every_style_shows_the_same_things(emoji: EmojiStyles) -> None:
    for style in STYLES:
        assert emoji.concepts(style).tolist() == [drawing.code_points for drawing in emoji.drawings]
        assert emoji.labels(style).tolist() == emoji.labels("fluent").tolist()
    assert len({drawing.code_points for drawing in emoji.drawings}) == 383
    assert emoji.key("line", 7) == emoji.drawings[7].code_points


def test_labels_are_those_of_the_class_table(emoji: EmojiStyles, table: dict[str, str]) -> None:
    assert len(table) == 558
    for drawing, label in zip(emoji.drawings, emoji.labels("noto"), strict=True):
        assert emoji.classes[label] == drawing.class_name == table[drawing.code_points]
    whole = Counter(table.values())
    assert Counter(drawing.class_name for drawing in emoji.drawings) == {c: min(40, n) for c, n in whole.items()}


@pytest.mark.parametrize("style", STYLES)
def test_pictures_are_64_by_64_rgb_on_white(emoji: EmojiStyles, style: str) -> None:
    first = emoji.image(style, 0)
    assert (first.size, first.mode) == ((64, 64), "RGB")
    corners = pictures(emoji, style)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    # Some drawings reach into one corner or two (a bus, a school); behind each the paper is white.
    assert ((corners == 255).all(-1).sum(-1) >= 1).all()


@pytest.mark.parametrize("style", STYLES)
def test_no_picture_is_blank(emoji: EmojiStyles, style: str) -> None:
    shown = pictures(emoji, style)
    assert ink(shown).mean((1, 2)).min() > 0.05
    assert shown.std((1, 2, 3)).min() > 20  # nor is any one colour all over, of 255


@pytest.mark.parametrize("style", STYLES)
def test_no_two_pictures_of_a_style_are_the_same(emoji: EmojiStyles, style: str) -> None:
    """Otherwise a concept held out would be one trained on."""
    flat = pictures(emoji, style).reshape(383, -1).astype(np.float64)
    squares = (flat**2).sum(1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * flat @ flat.T, 0) / flat.shape[1])
    assert distance[~np.eye(383, dtype=bool)].min() > 5  # root mean square difference, of 255


@pytest.mark.parametrize("style", ["fluent", "noto", "line"])
def test_no_picture_is_cut_off(emoji: EmojiStyles, style: str) -> None:
    """These sets leave a margin: none reaches all four sides, and few any (a train leaves the picture at the side)."""
    drawn = ink(pictures(emoji, style))
    sides = np.stack([drawn[:, 0].any(1), drawn[:, -1].any(1), drawn[:, :, 0].any(1), drawn[:, :, -1].any(1)], 1)
    assert not sides.all(1).any()
    assert sides.any(1).mean() < 0.06


def test_twemoji_fills_its_square_and_is_not_cut_off(emoji: EmojiStyles) -> None:
    """Twemoji has no margin. A round face then touches each side in its middle only, and in no corner."""
    faces = np.flatnonzero(emoji.labels("twemoji") == emoji.classes.index("face"))
    drawn = ink(pictures(emoji, "twemoji")[faces])
    for side in (drawn[:, 0], drawn[:, -1], drawn[:, :, 0], drawn[:, :, -1]):
        assert (side.mean(1) < 0.6).all()
    assert not drawn[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_line_art_is_grey_and_the_others_are_coloured(emoji: EmojiStyles) -> None:
    spread = {style: np.ptp(pictures(emoji, style).astype(int), axis=-1).mean() for style in STYLES}
    assert spread["line"] == 0
    assert min(spread[style] for style in ("fluent", "noto", "twemoji")) > 20


def test_what_ships_is_small_and_has_its_licences() -> None:
    sheets = [EMBEDDED / f"{style}.webp" for style in STYLES]
    assert sum(sheet.stat().st_size for sheet in sheets) < 3_000_000
    texts = {path.name: path.read_text() for path in (EMBEDDED / "LICENSES").iterdir()}
    assert "Microsoft Corporation" in texts["MIT.txt"]
    assert "Apache License" in texts["Apache-2.0.txt"]
    assert texts["CC-BY-4.0.txt"].startswith("Attribution 4.0 International")
    assert texts["CC-BY-SA-4.0.txt"].startswith("Attribution-ShareAlike 4.0 International")


def test_manifest_names_the_pinned_packages() -> None:
    from steppe.data.emoji_sources import PACKAGES

    styles = json.loads((EMBEDDED / "manifest.json").read_text())["styles"]
    assert list(styles) == [package.style for package in PACKAGES] == list(STYLES)
    for package in PACKAGES:
        assert styles[package.style]["package"] == f"{package.name}@{package.version}"
        assert styles[package.style]["integrity"] == package.integrity


def test_fingerprint_is_that_of_the_pixels(emoji: EmojiStyles, tmp_path: Path) -> None:
    copy = shutil.copytree(EMBEDDED, tmp_path / "copy")
    assert full_emoji(copy).fingerprint() == emoji.fingerprint()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["styles"]["line"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert full_emoji(copy).fingerprint() != emoji.fingerprint()


class TestDamage:
    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        return shutil.copytree(EMBEDDED, tmp_path / "copy")

    def test_other_pixels_than_the_manifests(self, copy: Path) -> None:
        shutil.copy(copy / "noto.webp", copy / "twemoji.webp")
        with pytest.raises(
            SteppeError, match=r"twemoji\.webp is not the sheet .* `steppe data fetch emoji` with --out"
        ):
            open_dataset(copy)

    def test_truncated_sheet(self, copy: Path) -> None:
        sheet = copy / "noto.webp"
        sheet.write_bytes(sheet.read_bytes()[:5000])
        with pytest.raises(SteppeError, match=r"cannot read .*noto\.webp"):
            open_dataset(copy)

    def test_missing_sheet_and_manifest(self, copy: Path) -> None:
        (copy / "line.webp").unlink()
        with pytest.raises(SteppeError, match=r"cannot read .*line\.webp"):
            open_dataset(copy)
        (copy / "manifest.json").write_text("{")
        with pytest.raises(SteppeError, match=r"cannot read .*manifest\.json"):
            full_emoji(copy)
        (copy / "manifest.json").unlink()
        with pytest.raises(SteppeError, match="there is no EmojiStyles set in"):
            full_emoji(copy)

    def test_format_of_another_version(self, copy: Path) -> None:
        (copy / "manifest.json").write_text(json.dumps({"format": 2}))
        with pytest.raises(SteppeError, match="has format 2, this steppe reads 1"):
            full_emoji(copy)


def test_strict_split_sizes(emoji: EmojiStyles) -> None:
    splits = make_splits(emoji, "fluent")
    sizes = {part: len(indices) for part, indices in splits.evaluation["fluent"].items()}
    assert sizes == {"train": 230, "validation": 57, "test": 96, "all": 383}
