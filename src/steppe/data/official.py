"""The five sets of pictures that DomainBed downloads: domains, classes and figures, as a table.

Gulrajani & Lopez-Paz, "In Search of Lost Domain Generalization" (2021), say how many pictures and classes each has. The
layout is what their program leaves (facebookresearch/DomainBed at b93c22a, domainbed/scripts/download.py): a folder for
each set, in it one for each domain, in that one for each class. They number the domains by the sorted names of these
folders (MultipleEnvironmentImageFolder in domainbed/datasets.py), and so does steppe.

Where the figures of the domains are from:

- PACS: Li et al. (2017); class by class from the lists of fmcarlucci/JigenDG (data/txt_lists), which add up to 2,048,
  2,344, 1,670 and 3,929.
- VLCS: Fang et al. (2013); class by class from DomainBed's own list of the files that its archive was made of
  (domainbed/misc/vlcs_files.txt), equal to that of the files in the archive
  (muse1998/Source-Free-Domain-Generalization, image_list/VLCS). Other copies of VLCS deal a few pictures of LabelMe
  and SUN09 to other classes.
- OfficeHome: Venkateswara et al. (2017); class by class from the lists of CDTrans/CDTrans (data/OfficeHomeDataset).
- TerraIncognita: Beery et al. (2018). 24,788 pictures is the paper's version, 4,879, 9,767, 4,020 and 6,122 by domain
  (an author of SWAD and MIRO in khanrc/miro#9); class by class from the lists of
  muse1998/Source-Free-Domain-Generalization (image_list/Terra), where the class ``empty`` is called ``landscape``.
  24,330 is what the files of today give (the same thread). Its figures by domain, 4,741, 9,736, 3,970 and 5,883, are
  those that experiments on it commonly give; they add up, and none is above the older version's.
- DomainNet: Peng et al. (2019), the cleaned version: the figures of the project's page, which are also the lengths of
  its lists of files for training and testing. DomainBed arrives at the same set by removing 9,431 duplicates
  (domainbed/misc/domain_net_duplicates.txt) from the 596,006 of the archives; no file is in both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from steppe.data.cache import cache_directory
from steppe.data.official_figures import (
    DOMAIN_NET_CLASSES,
    OFFICE_HOME,
    PACS,
    TERRA_INCOGNITA_24788,
    VLCS,
    by_class,
)
from steppe.errors import SteppeError

VARIABLE = "STEPPE_DATA"
RESEARCH = "no licence is stated; gathered for research from sources with terms of their own"
FAIR_USE = "fair use for non-commercial research and education; rights remain with the pictures' owners"


@dataclass(frozen=True)
class Domain:
    """One domain: its name here, its folder, its name in published tables, and DomainBed's short name."""

    name: str
    folder: str
    published: str
    short: str


@dataclass(frozen=True)
class Version:
    """The figures of one version of a set.

    Attributes:
        name: empty where there is only one.
        pictures: how many each domain has, in the order of the domains.
        by_class: class → how many each domain has of it; empty where that is not known.
    """

    name: str
    pictures: tuple[int, ...]
    by_class: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many pictures all domains have."""
        return sum(self.pictures)


@dataclass(frozen=True)
class Official:
    """One of the sets.

    Attributes:
        name: what :func:`steppe.data.open_dataset` opens.
        title: what papers call it.
        folder: its folder in the one that DomainBed calls ``--data_dir``.
        domains: in DomainBed's order.
        classes: sorted by name, as labels count them.
        versions: all that are accepted; today's first.
        licence: on which terms the pictures may be used.
        page: where its authors describe it.
    """

    name: str
    title: str
    folder: str
    domains: tuple[Domain, ...]
    classes: tuple[str, ...]
    versions: tuple[Version, ...]
    licence: str
    page: str

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """The folders of the domains."""
        return tuple(domain.folder for domain in self.domains)

    def domain_in(self, folder: str) -> Domain:
        """The domain that lies in ``folder``."""
        return self.domains[self.folders.index(folder)]


def _domains(*rows: tuple[str, str, str, str]) -> tuple[Domain, ...]:
    return tuple(Domain(*row) for row in rows)


def _whole(table: str, name: str = "") -> Version:
    figures = by_class(table)
    return Version(name, tuple(map(sum, zip(*figures.values(), strict=True))), figures)


_TERRA = _whole(TERRA_INCOGNITA_24788, "24,788")

OFFICIAL: Mapping[str, Official] = {
    official.name: official
    for official in (
        Official(
            name="pacs",
            title="PACS",
            folder="PACS",
            domains=_domains(
                ("art", "art_painting", "Art", "A"),
                ("cartoon", "cartoon", "Cartoon", "C"),
                ("photo", "photo", "Photo", "P"),
                ("sketch", "sketch", "Sketch", "S"),
            ),
            classes=tuple(sorted(by_class(PACS))),
            versions=(_whole(PACS),),
            licence=RESEARCH,
            page="https://domaingeneralization.github.io",
        ),
        Official(
            name="vlcs",
            title="VLCS",
            folder="VLCS",
            domains=_domains(
                ("caltech", "Caltech101", "Caltech", "C"),
                ("labelme", "LabelMe", "LabelMe", "L"),
                ("sun", "SUN09", "Sun", "S"),
                ("pascal", "VOC2007", "Pascal", "V"),
            ),
            classes=tuple(sorted(by_class(VLCS))),
            versions=(_whole(VLCS),),
            licence=RESEARCH,
            page="https://github.com/facebookresearch/DomainBed",
        ),
        Official(
            name="officehome",
            title="OfficeHome",
            folder="office_home",
            domains=_domains(
                ("art", "Art", "Art", "A"),
                ("clipart", "Clipart", "Clipart", "C"),
                ("product", "Product", "Product", "P"),
                ("real-world", "Real World", "Real World", "R"),
            ),
            classes=tuple(sorted(by_class(OFFICE_HOME))),
            versions=(_whole(OFFICE_HOME),),
            licence=FAIR_USE,
            page="http://hemanthdv.org/OfficeHome-Dataset",
        ),
        Official(
            name="terra-incognita",
            title="TerraIncognita",
            folder="terra_incognita",
            domains=_domains(
                ("L100", "location_100", "L100", "L100"),
                ("L38", "location_38", "L38", "L38"),
                ("L43", "location_43", "L43", "L43"),
                ("L46", "location_46", "L46", "L46"),
            ),
            classes=tuple(sorted(_TERRA.by_class)),
            versions=(Version("24,330", (4741, 9736, 3970, 5883)), _TERRA),
            licence="Caltech Camera Traps: Community Data License Agreement, permissive variant",
            page="https://lila.science/datasets/caltech-camera-traps",
        ),
        Official(
            name="domainnet",
            title="DomainNet",
            folder="domain_net",
            domains=_domains(
                ("clipart", "clipart", "Clipart", "clip"),
                ("infograph", "infograph", "Infograph", "info"),
                ("painting", "painting", "Painting", "paint"),
                ("quickdraw", "quickdraw", "Quickdraw", "quick"),
                ("real", "real", "Real", "real"),
                ("sketch", "sketch", "Sketch", "sketch"),
            ),
            classes=tuple(sorted(DOMAIN_NET_CLASSES.split())),
            versions=(Version("", (48129, 51605, 72266, 172500, 172947, 69128)),),
            licence=FAIR_USE,
            page="http://ai.bu.edu/M3SDA",
        ),
    )
}


def data_directory() -> Path:
    """Where a fetch puts the sets: ``$STEPPE_DATA``, the folder that DomainBed calls ``--data_dir``, else the cache."""
    own = os.environ.get(VARIABLE)
    return Path(own).expanduser().absolute() if own else cache_directory() / "domainbed"


def locate(official: Official) -> Path:
    """The folder of a set, in ``$STEPPE_DATA`` or in the cache.

    Raises:
        SteppeError: it is in neither; the message says how to get it.
    """
    places = list(dict.fromkeys((data_directory(), cache_directory() / "domainbed")))
    for place in places:
        if (place / official.folder).is_dir():
            return place / official.folder
    set_to = os.environ.get(VARIABLE)
    if set_to and not places[0].is_dir():
        raise SteppeError(f"{VARIABLE} is set to {set_to}, which is not a folder")
    looked = " or ".join(str(place) for place in places)
    raise SteppeError(
        f"{official.name} is not here: there is no folder {official.folder} in {looked}; run `steppe data fetch "
        f"{official.name}`, or set {VARIABLE} to the folder that holds {official.folder} (DomainBed's --data_dir)"
    )


def recognise(root: Path) -> Official | None:
    """The set whose layout ``root`` has: all of its domains' folders, in each at least half of its classes' folders.

    Nothing is counted. None for other folders, which may share some names with a set.
    """
    for official in OFFICIAL.values():
        if all(_has_most(root / folder, official.classes) for folder in official.folders):
            return official
    return None


def sets_within(root: Path) -> dict[Path, Official]:
    """The folders in ``root`` that have the layout of a set, sorted by name."""
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return {}
    return {path: official for path in folders if (official := recognise(path)) is not None}


def published_names(dataset: str, domain: str) -> tuple[str, str] | None:
    """What published tables call a set and its domain: ``("pacs", "art")`` is ``("PACS", "Art")``; None if unknown."""
    official = OFFICIAL.get(dataset)
    for own in official.domains if official else ():
        if official and own.name == domain:
            return official.title, own.published
    return None


def _has_most(folder: Path, names: tuple[str, ...]) -> bool:
    try:
        return len(set(os.listdir(folder)) & set(names)) * 2 >= len(names)  # noqa: PTH208 - only the names
    except OSError:
        return False
