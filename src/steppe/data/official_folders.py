"""One of DomainBed's sets of pictures in its folder, held against the official figures when it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from steppe.data.folders import ImageFolders, Layout, absolute, scan
from steppe.data.official import Official, Version, locate, sets_within
from steppe.data.pictures import read_picture
from steppe.errors import SteppeError

AS_IT_IS = "folder:"
"""In front of a path: open the folder as any other, whatever set it looks like."""


class OfficialFolders(ImageFolders):
    """The set ``official`` in the folder ``root``: DomainBed's order of domains, classes, pictures, and its labels.

    Only the folders of its domains are looked at. How many pictures each domain has is counted, and where it is known
    each class; that takes no longer than listing them. A picture whose data end too soon is read as far as it goes, the
    rest grey, as DomainBed reads it: what the sets contain is part of them. ``steppe data check`` names such pictures.

    Attributes:
        official: the table's entry.
        version: whose figures the folder has.

    Raises:
        SteppeError: a folder is missing, or there are other classes or other numbers of pictures than any version has;
            the message says which, and how to open the folder as it is.
    """

    def __init__(self, official: Official, root: Path | None = None) -> None:
        self.official = official
        self.root = absolute(locate(official) if root is None else root)
        self.name = official.name
        self.spec = official.name if root is None else str(self.root)
        self.licence = official.licence
        missing = missing_folders(official, self.root)
        if missing:
            below = [path.name for path, other in sets_within(self.root).items() if other is official]
            hint = [f"the set lies in {below[0]}: move its folders up"] if below else []
            raise SteppeError(self._differs(hint + missing))
        layout = scan(self.root, official.folders)
        differences = [*class_differences(official, layout)] or [*count_differences(official, layout)]
        if differences:
            raise SteppeError(self._differs(differences))
        self.version = closest(official, layout)
        self._take({official.domain_in(folder).name: by_class for folder, by_class in layout.items()})

    def image(self, domain: str, index: int) -> Image.Image:
        return read_picture(self.root / self._files[domain][index], whole=False)

    def problems(self, *, progress: bool = False) -> tuple[str, ...]:
        """Decodes every picture and says which cannot be read at all; those found good before are skipped."""
        records = self._survey(progress=progress)
        return tuple(
            record.problem
            for file, record in records.items()
            if record.problem and not readable_in_part(self.root / file)
        )

    def check_domain(self, domain: str) -> None:
        """Raises SteppeError unless ``domain`` is one of the set's; says its name where its folder is given."""
        for known in self.official.domains:
            if domain != known.name and domain in (known.folder, known.published, known.short):
                raise SteppeError(f"the domain {domain!r} of {self.name!r} is called {known.name!r} here")
        super().check_domain(domain)

    def _differs(self, differences: list[str]) -> str:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        return (
            f"{self.root} is not {self.official.title} as published: {'; '.join(differences[:4])}{more}. "
            f"`steppe data check {self.spec}` names files; `steppe data fetch {self.name}` gets the set anew; to use "
            f"the folder as it is, name it {AS_IT_IS}{self.root}"
        )


def missing_folders(official: Official, root: Path) -> list[str]:
    """A line for each domain of ``official`` that has no folder in ``root``."""
    if not root.is_dir():
        raise SteppeError(f"{root} is not a folder" if root.exists() else f"there is no folder {root}")
    return [
        f"domain {domain.name!r} is missing (there is no folder {domain.folder})"
        for domain in official.domains
        if not (root / domain.folder).is_dir()
    ]


def class_differences(official: Official, layout: Layout) -> Iterator[str]:
    """A line for each class that a domain lacks or has beyond the set's; folders without pictures count as missing."""
    for folder, by_class in layout.items():
        domain = official.domain_in(folder).name
        for name in official.classes:
            if not by_class.get(name):
                yield f"class {name!r} has no pictures in domain {domain!r}"
        for name in sorted(set(by_class) - set(official.classes)):
            yield f"domain {domain!r} has a class {name!r}, which the set does not have"


def count_differences(official: Official, layout: Layout) -> Iterator[str]:
    """A line for each domain, and each class of a domain, with more or fewer pictures than the closest version has."""
    version = closest(official, layout)
    of_version = f" (of the version with {version.name})" if version.name else ""
    for folder, by_class in layout.items():
        number = official.folders.index(folder)
        domain = official.domains[number].name
        found, expected = sum(map(len, by_class.values())), version.pictures[number]
        if found != expected:
            yield f"domain {domain!r} has {found:,} pictures instead of {expected:,}{of_version}"
        for name, counts in version.by_class.items():
            here = len(by_class.get(name, ()))
            if here not in (0, counts[number]):  # that there are none is said of the class
                yield f"class {name!r} of domain {domain!r} has {here:,} pictures instead of {counts[number]:,}"


def closest(official: Official, layout: Layout) -> Version:
    """The version whose figures of the domains differ least; the first of several."""
    found = {folder: sum(map(len, by_class.values())) for folder, by_class in layout.items()}

    def distance(version: Version) -> int:
        expected = dict(zip(official.folders, version.pictures, strict=True))
        return sum(abs(expected[folder] - count) for folder, count in found.items())

    return min(official.versions, key=distance)


def readable_in_part(path: Path) -> bool:
    """Whether the picture can be read when data that end too soon are no error."""
    try:
        read_picture(path, whole=False)
    except SteppeError:
        return False
    return True
