"""What the downloads' own lists say belongs to DomainNet and TerraIncognita."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from miniatures import contents, miniature, write_folder

from steppe.data.official import OFFICIAL
from steppe.data.official_lists import (
    ANNOTATIONS,
    annotated_pictures,
    listed_files,
    listed_pictures,
    split_lists,
)
from steppe.errors import SteppeError

TERRA = OFFICIAL["terra-incognita"]


def by_domainbeds_rule(annotations: list[dict]) -> set[tuple[str, str, str]]:
    """An oracle: for every picture of a location, every annotation of it that names an animal of the set."""
    data: dict[str, list[dict]] = {"categories": [], "images": [], "annotations": []}
    for part in annotations:
        for key in data:
            data[key] += part[key]
    names = {item["id"]: item["name"] for item in data["categories"]}
    found = set()
    for image in data["images"]:
        if str(image["location"]) in ("38", "46", "100", "43"):
            for label in data["annotations"]:
                if label["image_id"] == image["id"] and names[label["category_id"]] in TERRA.classes:
                    found.add((f"location_{image['location']}", names[label["category_id"]], image["file_name"]))
    return found


def made_up(seed: int) -> list[dict]:
    draw = random.Random(seed)
    categories = [{"id": 30 - i, "name": name} for i, name in enumerate((*TERRA.classes, "car", "deer"))]
    parts = []
    for part in range(5):
        images = [
            {
                "id": f"{part}-{i}",
                "file_name": f"{part}-{i}.jpg",
                "location": draw.choice([38, "43", 46, "100", 7, "99"]),
            }
            for i in range(40)
        ]
        labels = [
            {"image_id": draw.choice(images)["id"], "category_id": draw.choice(categories)["id"]} for _ in range(70)
        ]
        parts.append({"categories": categories, "images": images, "annotations": labels, "info": {}})
    return parts


@pytest.mark.parametrize("seed", range(5))
def test_pictures_go_where_domainbed_puts_them(seed: int) -> None:
    annotations = made_up(seed)
    found = annotated_pictures(TERRA, annotations)
    expected = by_domainbeds_rule(annotations)
    assert {tuple(place.split("/")) for places in found.values() for place in places} == expected
    assert any(len(places) > 1 for places in found.values()), "one picture with two animals lies in two classes"
    assert all(place.endswith(f"/{name}") for name, places in found.items() for place in places)


def test_annotations_in_another_format() -> None:
    for other in ([{}], [{"categories": [], "images": [{"id": 1}], "annotations": []}], [[]]):
        with pytest.raises(SteppeError, match="not in the format of COCO Camera Traps"):
            annotated_pictures(TERRA, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["inside", "in their folder", "beside"])
def test_terra_incognitas_annotations_are_found(place: str, tmp_path: Path) -> None:
    official = miniature("terra-incognita")
    root = write_folder(official, tmp_path / "terra_incognita")
    assert listed_files(official, root) is None
    folder = {"inside": root, "in their folder": root / "eccv_18_annotation_files"}.get(
        place, tmp_path / "eccv_18_annotation_files"
    )
    folder.mkdir(exist_ok=True)
    for name, content in zip(ANNOTATIONS, made_up(0), strict=True):
        (folder / name).write_text(json.dumps(content))
    listed = listed_files(official, root)
    assert listed is not None
    assert {path.split("/")[1] for path in listed} == set(official.classes)
    (folder / ANNOTATIONS[3]).write_text("{")
    with pytest.raises(SteppeError, match=f"cannot read the annotations {folder / ANNOTATIONS[3]}"):
        listed_files(official, root)


def test_domainnets_lists(tmp_path: Path) -> None:
    official = miniature("domainnet")
    assert split_lists(official)[:3] == ("clipart_train.txt", "clipart_test.txt", "infograph_train.txt")
    root = write_folder(official, tmp_path / "domain_net")
    for number, name in enumerate(split_lists(official)):
        assert listed_files(official, root) is None, "some lists are as good as none"
        own = [path for path in contents(official) if path.startswith(name.partition("_")[0])][number % 2 :: 2]
        (root / name).write_text("".join(f"{path} 0\r\n" for path in own))
    assert listed_files(official, root) == set(contents(official))


def test_a_list_with_other_lines(tmp_path: Path) -> None:
    path = tmp_path / "real_train.txt"
    path.write_text("real/bus/a b.jpg 12\n\n<html>\n")
    with pytest.raises(SteppeError, match=r"line 2 of .*real_train\.txt is not <domain>/.* <label>: '<html>'"):
        listed_pictures([path])
    path.write_text("real/bus/a b.jpg 12\n")
    assert listed_pictures([path]) == {"real/bus/a b.jpg"}
    with pytest.raises(SteppeError, match="cannot read the list"):
        listed_pictures([tmp_path / "none.txt"])


@pytest.mark.parametrize("name", ["pacs", "vlcs", "officehome"])
def test_the_others_have_none(name: str, tmp_path: Path) -> None:
    official = miniature(name)
    assert listed_files(official, write_folder(official, tmp_path / "set")) is None
