"""DomainBed's five sets in miniature: real small pictures in the official layouts, as folders and as archives."""

from __future__ import annotations

import colorsys
import dataclasses
import io
import itertools
import json
import os
import tarfile
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from steppe.data.official import OFFICIAL, Official, Version

SETS = tuple(OFFICIAL)
ARCHIVES = {  # set → its archives, as the servers call them
    "pacs": ("PACS.zip",),
    "vlcs": ("VLCS.tar.gz",),
    "officehome": ("office_home.zip",),
    "terra-incognita": ("eccv_18_annotations.tar.gz", "eccv_18_all_images_sm.tar.gz"),
    "domainnet": ("clipart.zip", "infograph.zip", "painting.zip", "quickdraw.zip", "real.zip", "sketch.zip"),
}
TOP = {"pacs": "kfold/", "vlcs": "VLCS/", "officehome": "OfficeHomeDataset_10072016/", "domainnet": ""}


def miniature(name: str, classes: int = 3, each: int = 2) -> Official:
    """The set with its first classes and ``each`` pictures of each in every domain, as an entry of its own."""
    official = OFFICIAL[name]
    kept = official.classes[:classes]
    by_class = {label: (each,) * len(official.domains) for label in kept}
    figures = (each * len(kept),) * len(official.domains)
    return dataclasses.replace(official, classes=kept, versions=(Version("", figures, by_class),))


def picture(number: int, suffix: str = ".jpg") -> bytes:
    """A picture that no other number has, as a file."""
    colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(number * 0.37 % 1, 0.8, 0.9))
    drawn = Image.new("RGB", (24, 20), "white")
    ImageDraw.Draw(drawn).rectangle((2, 2, 3 + number % 19, 3 + number % 13), fill=colour)
    ImageDraw.Draw(drawn).point((number % 24, 19), fill=(number % 256, number // 256 % 256, 7))
    file = io.BytesIO()
    drawn.save(file, "PNG" if suffix == ".png" else "JPEG")
    return file.getvalue()


def file_name(official: Official, folder: str, label: str, number: int) -> str:
    """A name like those of the set."""
    if official.name == "pacs":
        return f"n{number}-1.png" if folder == "sketch" else f"pic_{number:03}.jpg"
    if official.name == "domainnet":
        index = official.classes.index(label) + 1
        return f"{folder}_{index:03}_{number:06}.{'png' if folder == 'quickdraw' else 'jpg'}"
    if official.name == "officehome":
        return f"{number:05}.jpg"
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{folder}/{label}/{number}")
    return f"{identity if official.name == 'terra-incognita' else identity.hex}.jpg"


def contents(official: Official) -> dict[str, bytes]:
    """path → file of every picture of a miniature."""
    counter = itertools.count()
    found = {}
    for number, folder in enumerate(official.folders):
        for label in official.classes:
            for index in range(1, official.versions[0].by_class[label][number] + 1):
                name = file_name(official, folder, label, index)
                found[f"{folder}/{label}/{name}"] = picture(next(counter), Path(name).suffix)
    return found


def write_folder(official: Official, root: Path) -> Path:
    """The set as DomainBed's script leaves it."""
    return write_files(root, contents(official))


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def write_archives(official: Official, folder: Path) -> Path:
    """The set's archives in ``folder``, laid out like the official ones, with what else lies in those."""
    folder.mkdir(parents=True, exist_ok=True)
    files = contents(official)
    if official.name == "pacs":
        extras = {"kfold/.DS_Store": b"x", "__MACOSX/kfold/photo/dog/._pic_001.jpg": b"x"}
        zipped(folder / "PACS.zip", under(TOP["pacs"], files) | extras)
    elif official.name == "vlcs":
        tarred(folder / "VLCS.tar.gz", under(TOP["vlcs"], files))
    elif official.name == "officehome":
        extras = {f"{TOP['officehome']}ImageInfo.csv": b"Art,1\n", f"{TOP['officehome']}imagelist.txt": b"a list\n"}
        zipped(folder / "office_home.zip", under(TOP["officehome"], files) | extras)
    elif official.name == "domainnet":
        _write_domain_net(official, folder, files)
    else:
        _write_terra_incognita(official, folder, files)
    return folder


def _write_domain_net(official: Official, folder: Path, files: Mapping[str, bytes]) -> None:
    for domain in official.folders:
        own = {path: content for path, content in files.items() if path.startswith(f"{domain}/")}
        duplicate = {f"{domain}/{official.classes[0]}/{domain}_001_999999.jpg": next(iter(own.values()))}
        zipped(folder / f"{domain}.zip", own | duplicate)
    split_into_lists(official, folder)


def split_into_lists(official: Official, folder: Path) -> None:
    """DomainNet's lists for training and testing."""
    for domain in official.folders:
        own = [path for path in contents(official) if path.startswith(f"{domain}/")]
        lines = [f"{path} {official.classes.index(path.split('/')[1])}\n" for path in own]
        (folder / f"{domain}_train.txt").write_text("".join(lines[::2]))
        (folder / f"{domain}_test.txt").write_text("".join(lines[1::2]))


def _write_terra_incognita(official: Official, folder: Path, files: Mapping[str, bytes]) -> None:
    """Five files of annotations; besides the set's pictures, one of another place and one of another animal."""
    names = [*official.classes, "car"]
    categories = [{"id": 10 + index, "name": name} for index, name in enumerate(names)]
    number = {category["name"]: category["id"] for category in categories}
    images, labels = [], []
    for path in files:
        place, label, name = path.split("/")
        location: str | int = place.removeprefix("location_")
        location = int(location) if location == "38" else location  # both occur
        images.append({"id": name.removesuffix(".jpg"), "file_name": name, "location": location})
        labels.append({"image_id": images[-1]["id"], "category_id": number[label]})
    others = {"elsewhere.jpg": ("7", official.classes[0]), "car.jpg": ("100", "car")}
    for name, (location, label) in others.items():
        images.append({"id": name, "file_name": name, "location": location})
        labels.append({"image_id": name, "category_id": number[label]})
    parts = ("cis_test", "cis_val", "train", "trans_test", "trans_val")
    annotations = {
        f"eccv_18_annotation_files/{part}_annotations.json": json.dumps(
            {"categories": categories, "images": images[index::5], "annotations": labels[index::5], "info": {}}
        ).encode()
        for index, part in enumerate(parts)
    }
    tarred(folder / "eccv_18_annotations.tar.gz", annotations)
    pictures = {f"eccv_18_all_images_sm/{Path(path).name}": content for path, content in files.items()}
    pictures |= {f"eccv_18_all_images_sm/{name}": picture(999) for name in others}
    tarred(folder / "eccv_18_all_images_sm.tar.gz", pictures)


def under(top: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{top}{path}": content for path, content in files.items()}


def parents(paths: Iterable[str]) -> list[str]:
    """All folders on the way to ``paths``, as archives list them."""
    found = {str(parent) for path in paths for parent in Path(path).parents}
    return sorted(found - {"."})


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in parents(files):
            archive.writestr(f"{folder}/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for folder in parents(files):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_counts(root: Path, figures: Mapping[str, Mapping[str, int]]) -> Path:
    """domain's folder → class → how many: that many names of a few small pictures, by hard links."""
    root.mkdir(parents=True)
    source, links = None, 0
    for folder, by_class in figures.items():
        for label, count in by_class.items():
            place = root / folder / label
            place.mkdir(parents=True)
            for index in range(count):
                if source is None or links == 30_000:  # a file system allows so many names of a file
                    source, links = place / f"{index:06}.png", 0
                    source.write_bytes(picture(0, ".png"))
                else:
                    os.link(source, place / f"{index:06}.png")
                links += 1
    return root


def spread(official: Official, version: Version) -> dict[str, dict[str, int]]:
    """The figures of a version; where those of the classes are not known, the pictures dealt out to them."""
    classes = len(official.classes)
    return {
        folder: {
            label: version.by_class[label][number]
            if version.by_class
            else version.pictures[number] // classes + (index < version.pictures[number] % classes)
            for index, label in enumerate(official.classes)
        }
        for number, folder in enumerate(official.folders)
    }
