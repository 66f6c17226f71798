"""Where the official sets come from: the archives of DomainBed's download script, and what lies where in them.

Addresses and steps are those of domainbed/scripts/download.py (facebookresearch/DomainBed at b93c22a): PACS, VLCS and
OfficeHome are each one archive of Google Drive; DomainNet is six archives of its project's server, the cleaned version;
TerraIncognita is put together from the pictures and annotations of LILA's Caltech Camera Traps. Which files of
DomainNet are duplicates is taken from the lists of the cleaned version on the project's page, which name those that
stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from steppe.data.archives import Places
from steppe.data.official import OFFICIAL, Official
from steppe.data.official_lists import (
    ANNOTATION_FOLDER,
    ANNOTATIONS,
    annotated_pictures,
    listed_pictures,
    read_annotations,
    split_lists,
)
from steppe.errors import SteppeError

DOMAIN_NET = "http://csr.bu.edu/ftp/visda/2019/multi-source"
LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"


@dataclass(frozen=True)
class Download:
    """One file to fetch: the name it is kept under, its address, and names under which people may have it."""

    file: str
    address: str
    also: tuple[str, ...] = ()

    def find(self, folder: Path) -> Path | None:
        """The file in ``folder``, under any of its names."""
        return next((path for name in (self.file, *self.also) if (path := folder / name).is_file()), None)


@dataclass(frozen=True)
class Source:
    """What a set is made of: archives in the order in which they are unpacked, and lists that are kept beside them.

    Attributes:
        size: roughly how much is fetched, where its page says so.
    """

    archives: tuple[Download, ...]
    lists: tuple[Download, ...] = ()
    size: str = ""


def _drive(identity: str) -> str:
    return f"https://drive.google.com/uc?id={identity}"


SOURCES: Mapping[str, Source] = {
    "pacs": Source(
        (Download("PACS.zip", _drive("1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd"), ("kfold.zip",)),),
    ),
    "vlcs": Source((Download("VLCS.tar.gz", _drive("1skwblH1_okBwxWxmRsp9_qi15hyPpxg8")),)),
    "officehome": Source(
        (
            Download(
                "office_home.zip", _drive("1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC"), ("OfficeHomeDataset_10072016.zip",)
            ),
        ),
    ),
    "terra-incognita": Source(
        (
            Download("eccv_18_annotations.tar.gz", f"{LILA}/eccv_18_annotations.tar.gz"),
            Download(
                "eccv_18_all_images_sm.tar.gz",
                f"{LILA}/eccv_18_all_images_sm.tar.gz",
                ("terra_incognita_images.tar.gz",),
            ),
        ),
        size="6 GB",
    ),
    "domainnet": Source(
        (
            Download("clipart.zip", f"{DOMAIN_NET}/groundtruth/clipart.zip"),
            Download("infograph.zip", f"{DOMAIN_NET}/infograph.zip"),
            Download("painting.zip", f"{DOMAIN_NET}/groundtruth/painting.zip"),
            Download("quickdraw.zip", f"{DOMAIN_NET}/quickdraw.zip"),
            Download("real.zip", f"{DOMAIN_NET}/real.zip"),
            Download("sketch.zip", f"{DOMAIN_NET}/sketch.zip"),
        ),
        tuple(Download(name, f"{DOMAIN_NET}/domainnet/txt/{name}") for name in split_lists(OFFICIAL["domainnet"])),
        size="17.5 GB",
    ),
}


def places_of(official: Official, archive: Download, tree: Path) -> Places:
    """Where the members of ``archive`` go in ``tree``, the folder of the set in the making.

    Of PACS, VLCS and OfficeHome: what lies in a class of a domain, whatever the folders above it are called (``kfold``,
    ``VLCS``, ``OfficeHomeDataset_10072016``). Of DomainNet: those that its lists name, so that no duplicate is written.
    Of TerraIncognita: the annotations as files of the set, then the pictures where they say.

    Raises:
        SteppeError: lists or annotations that are needed for this archive cannot be read.
    """
    if official.name == "domainnet":
        listed = listed_pictures(tree / name for name in split_lists(official))
        return lambda member: (inner,) if (inner := _inside(official, member)) in listed else ()
    if official.name == "terra-incognita":
        if "annotations" in archive.file:
            return lambda member: (name,) if (name := PurePosixPath(member).name) in ANNOTATIONS else ()
        copies = annotated_pictures(official, read_annotations(tree))
        if not copies:
            raise SteppeError(f"the annotations of {ANNOTATION_FOLDER} name no picture of the four locations")
        return lambda member: copies.get(PurePosixPath(member).name, ())
    return lambda member: (inner,) if (inner := _inside(official, member)) else ()


def _inside(official: Official, member: str) -> str:
    """``<domain>/<class>/<file>``, the end of a member's path; empty where it does not end like this.

    The classes are not asked for: one that does not belong must be seen afterwards, not vanish.
    """
    parts = PurePosixPath(member).parts
    hidden = any(part.startswith(".") for part in parts[-3:]) or "__MACOSX" in parts
    return "" if hidden or len(parts) < 3 or parts[-3] not in official.folders else "/".join(parts[-3:])
