"""Any folder ``root/<domain>/<class>/pictures`` as a data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from steppe.data.domains import DomainDataset, Indices
from steppe.data.pictures import SUFFIXES, read_picture
from steppe.data.verification import Record, survey
from steppe.errors import SteppeError

Layout = dict[str, dict[str, list[str]]]
"""domain → class → the pictures' paths relative to the root."""


class ImageFolders(DomainDataset):
    """One folder a domain, in it one folder a class, in it pictures (also in folders further down).

    Domains and classes are sorted by name. Within a domain the pictures are in the order in which torchvision's
    ImageFolder lists them, so that DomainBed's splits come out the same: class by class, folder by folder, file by
    file, each sorted by name. Left out: hidden files and folders, and files whose suffix is no picture's. Links are
    followed.

    Raises:
        SteppeError: ``root`` is not a folder, is not laid out like this, or a class has no pictures in some domain.
    """

    def __init__(self, root: Path) -> None:
        self.root = absolute(root)
        self.name = self.root.name
        self.spec = str(self.root)
        layout = scan(self.root)
        if not layout:
            raise SteppeError(f"{self.root} has no folders in it; {_expected(self.root)}")
        self._take(layout)

    def _take(self, layout: Layout) -> None:
        """Makes the pictures of ``layout``, domain → class → files, this set's, once every class is everywhere."""
        for domain, by_class in layout.items():
            if not any(by_class.values()):
                raise SteppeError(_empty_domain(self.root, domain))
        self.domains = tuple(layout)
        self.classes = tuple(sorted(set().union(*layout.values())))
        self._files: dict[str, list[str]] = {}
        self._labels: dict[str, Indices] = {}
        for domain, by_class in layout.items():
            for name in self.classes:
                if not by_class.get(name):
                    raise SteppeError(_lacks_class(self.root, domain, name, layout))
            self._files[domain] = [file for name in self.classes for file in by_class[name]]
            self._labels[domain] = np.concatenate(
                [np.full(len(by_class[name]), label) for label, name in enumerate(self.classes)], dtype=np.int64
            )

    def labels(self, domain: str) -> Indices:
        self.check_domain(domain)
        return self._labels[domain].copy()

    def key(self, domain: str, index: int) -> str:
        self.check_domain(domain)
        return self._files[domain][index]

    def image(self, domain: str, index: int) -> Image.Image:
        return read_picture(self.root / self._files[domain][index])

    def files(self) -> list[str]:
        """All pictures' paths relative to the root, in the order of the domains."""
        return [file for domain in self.domains for file in self._files[domain]]

    def fingerprint(self) -> str:
        """A hash over every picture's relative path and content.

        Not over times or sizes: a copy of the folder on another machine is the same data, and a picture that was
        replaced by another of equal size is not. Contents are read once, when the pictures are checked, and
        remembered; what this object found first it keeps to.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self._identity(survey(self.root, self.files()))

    def _identity(self, records: Mapping[str, Record]) -> str:
        content = "".join(f"{file}\0{records[file].digest}\n" for file in self.files())
        return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def _survey(self, *, progress: bool) -> dict[str, Record]:
        """Every picture decoded; the fingerprint, which is asked for next, follows from it."""
        records = survey(self.root, self.files(), progress=progress)
        if all(record.digest for record in records.values()):  # one that could not be read is read again when asked
            self.__dict__.setdefault("_fingerprint", self._identity(records))
        return records

    def problems(self, *, progress: bool = False) -> tuple[str, ...]:
        """Decodes every picture and says which cannot be read; those found good before and not changed are skipped."""
        records = self._survey(progress=progress)
        return tuple(record.problem for record in records.values() if record.problem)


def absolute(root: Path) -> Path:
    """``root`` as an absolute path, links left as they are: resolve() would lose a link's own name."""
    return Path(os.path.abspath(root.expanduser()))  # noqa: PTH100


def scan(root: Path, domains: Iterable[str] | None = None) -> Layout:
    """What lies in ``root``: domain's folder → class → pictures' paths relative to ``root``, with forward slashes.

    Everything is sorted as :class:`ImageFolders` promises; nothing is opened.

    Args:
        domains: only these folders, in this order, of which each must be there; by default all.

    Raises:
        SteppeError: ``root`` is not a folder, some folder cannot be read, or a name is no text.
    """
    if not root.is_dir():
        raise SteppeError(f"{root} is not a folder" if root.exists() else f"there is no folder {root}")
    _check_name(str(root))
    layout: Layout = {}
    for domain in _folders(root) if domains is None else domains:
        layout[domain] = {name: list(_pictures(root, f"{domain}/{name}")) for name in _folders(root / domain)}
    return layout


def _expected(root: Path) -> str:
    return f"expected {root}/<domain>/<class>/<pictures>"


def _empty_domain(root: Path, domain: str) -> str:
    folder = root / domain
    loose = (
        min((file.name for file in folder.iterdir() if _is_picture(file)), default=None) if folder.is_dir() else None
    )
    hint = f": {loose} lies in the domain itself, the level of classes is missing" if loose else ""
    return f"domain {domain!r} of {root} has no pictures{hint}; {_expected(root)}"


def _check_name(path: str) -> None:
    """Raises SteppeError where a name's bytes are no UTF-8: no file of a run could hold it."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise SteppeError(f"the name of {path!r} is not UTF-8 text: rename it") from error


def _lacks_class(root: Path, domain: str, name: str, layout: Layout) -> str:
    having = [repr(other) for other, by_class in layout.items() if by_class.get(name)]
    where = f"; {having[0]} has it" if having else ", nor in any other"
    return (
        f"class {name!r} has no pictures in domain {domain!r} of {root}{where}; "
        "every class must be there in every domain: add pictures, or take the class out of all domains"
    )


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in ``folder``, hidden names left out, in no order."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise SteppeError(f"cannot read the folder {folder}: {error.strerror or error}") from error


def _folders(parent: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(str(parent)) if entry.is_dir())


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _pictures(root: Path, folder: str) -> Iterator[str]:
    """The pictures in ``folder`` of ``root`` and below: folders sorted by path, in each the files by name."""
    top = str(root)
    seen = {os.path.realpath(f"{top}/{folder}")}
    places, found = [folder], []
    while places:
        place = places.pop()
        names = []
        for entry in _entries(f"{top}/{place}"):
            # Without a suffix no further question is asked: a set may have half a million files.
            if entry.is_dir():
                # A link to a folder above would be walked for ever.
                real = os.path.realpath(entry.path)
                if real not in seen:
                    seen.add(real)
                    places.append(f"{place}/{entry.name}")
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():  # noqa: PTH122
                names.append(entry.name)
        found.append((place, sorted(names)))
    for place, names in sorted(found):
        for name in names:
            _check_name(f"{top}/{place}/{name}")
            yield f"{place}/{name}"
