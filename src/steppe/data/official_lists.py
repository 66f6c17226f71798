"""Which files belong to a set, by the lists that its own download carries.

DomainNet has two a domain, ``clipart_train.txt`` and ``clipart_test.txt``, with a path and a label in a line; together
they are the cleaned set. TerraIncognita is made from five files of annotations in the format of COCO Camera Traps. The
downloads of PACS, VLCS and OfficeHome hold no list that says as much.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from steppe.data.official import Official
from steppe.errors import SteppeError

ANNOTATIONS = (
    "cis_test_annotations.json",
    "cis_val_annotations.json",
    "train_annotations.json",
    "trans_test_annotations.json",
    "trans_val_annotations.json",
)
ANNOTATION_FOLDER = "eccv_18_annotation_files"


def split_lists(official: Official) -> tuple[str, ...]:
    """The names of DomainNet's lists."""
    return tuple(f"{folder}_{part}.txt" for folder in official.folders for part in ("train", "test"))


def listed_files(official: Official, root: Path) -> frozenset[str] | None:
    """The paths, relative to ``root``, of all files that belong to the set, where its lists lie in or beside ``root``.

    None where they do not, or the set has none. TerraIncognita's may lie in their folder or without it.

    Raises:
        SteppeError: a list is there and cannot be read.
    """
    if official.name == "domainnet":
        lists = [root / name for name in split_lists(official)]
        return listed_pictures(lists) if all(path.is_file() for path in lists) else None
    if official.name == "terra-incognita":
        for folder in (root, root / ANNOTATION_FOLDER, root.parent / ANNOTATION_FOLDER):
            files = [folder / name for name in ANNOTATIONS]
            if all(path.is_file() for path in files):
                copies = annotated_pictures(official, [_parsed(path) for path in files])
                return frozenset(place for places in copies.values() for place in places)
    return None


def listed_pictures(lists: Iterable[Path]) -> frozenset[str]:
    """The paths in lists of which a line is a path and a label.

    Raises:
        SteppeError: one of them cannot be read or has other lines.
    """
    found: set[str] = set()
    for path in lists:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SteppeError(f"cannot read the list {path}: {error}") from error
        for number, line in enumerate(filter(None, map(str.strip, lines)), start=1):
            file, _, label = line.rpartition(" ")
            if file.count("/") != 2 or not label.isdigit():
                raise SteppeError(
                    f"line {number} of {path} is not <domain>/<class>/<picture> <label>: {line[:80]!r}; remove the "
                    "file and get it again"
                )
            found.add(file)
    return frozenset(found)


def annotated_pictures(official: Official, annotations: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """A picture's name in the archive → where DomainBed puts it: ``location_38/raccoon/<name>``.

    Taken are pictures of the set's locations; each goes to the folder of every class of the set that it is annotated
    with, which may be several.

    Raises:
        SteppeError: the annotations are not in the format of COCO Camera Traps.
    """
    folders = {folder.removeprefix("location_"): folder for folder in official.folders}
    categories: dict[Any, str] = {}
    images: dict[Any, tuple[str, str]] = {}  # id → its folder, its name
    labels: list[tuple[Any, Any]] = []
    try:
        for part in annotations:
            categories |= {category["id"]: str(category["name"]) for category in part["categories"]}
            for image in part["images"]:
                folder = folders.get(str(image["location"]))
                if folder is not None:
                    images[image["id"]] = (folder, str(image["file_name"]))
            labels += [(label["image_id"], label["category_id"]) for label in part["annotations"]]
        named = [(image, categories[category]) for image, category in labels if image in images]
    except (KeyError, TypeError, AttributeError) as error:
        raise SteppeError(f"the annotations are not in the format of COCO Camera Traps: {error!r}") from error
    places: dict[str, set[str]] = {}
    for image, category in named:
        folder, name = images[image]
        if category in official.classes:
            places.setdefault(name, set()).add(f"{folder}/{category}/{name}")
    return {name: tuple(sorted(copies)) for name, copies in places.items()}


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SteppeError(f"cannot read the annotations {path}: {error}") from error
    if not isinstance(content, dict):
        raise SteppeError(f"{path} holds no annotations")
    return content


def read_annotations(folder: Path) -> list[Mapping[str, Any]]:
    """The five files of annotations in ``folder``. Raises SteppeError."""
    return [_parsed(folder / name) for name in ANNOTATIONS]
