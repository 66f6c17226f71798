"""Any folder ``root/<domain>/<class>/pictures`` as a data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from steppe.data.domains import DomainDataset, Indices
from steppe.data.pictures import SUFFIXES, read_picture
from steppe.data.verification import survey
from steppe.errors import SteppeError


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
        self.root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100 - resolve() would lose a link's own name
        self.name = self.root.name
        self.spec = str(self.root)
        layout = _scan(self.root)
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
        records = survey(self.root, self.files())
        content = "".join(f"{file}\0{records[file].digest}\n" for file in self.files())
        return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def problems(self, *, progress: bool = False) -> tuple[str, ...]:
        """Decodes every picture and says which cannot be read; those found good before and not changed are skipped."""
        records = survey(self.root, self.files(), progress=progress)
        return tuple(record.problem for record in records.values() if record.problem)


def _scan(root: Path) -> dict[str, dict[str, list[str]]]:
    """domain → class → pictures' paths relative to ``root``, sorted as the class promises."""
    if not root.is_dir():
        raise SteppeError(f"{root} is not a folder" if root.exists() else f"there is no folder {root}")
    layout = {
        domain.name: {
            name.name: [file.relative_to(root).as_posix() for file in _pictures(name)] for name in _folders(domain)
        }
        for domain in _folders(root)
    }
    _check_name(str(root))
    for by_class in layout.values():
        for files in by_class.values():
            for file in files:
                _check_name(f"{root}/{file}")
    expected = f"expected {root}/<domain>/<class>/<pictures>"
    if not layout:
        raise SteppeError(f"{root} has no folders in it; {expected}")
    for domain, by_class in layout.items():
        if not any(by_class.values()):
            loose = min((file.name for file in (root / domain).iterdir() if _is_picture(file)), default=None)
            hint = f": {loose} lies in the domain itself, the level of classes is missing" if loose else ""
            raise SteppeError(f"domain {domain!r} of {root} has no pictures{hint}; {expected}")
    return layout


def _check_name(path: str) -> None:
    """Raises SteppeError where a name's bytes are no UTF-8: no file of a run could hold it."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise SteppeError(f"the name of {path!r} is not UTF-8 text: rename it") from error


def _lacks_class(root: Path, domain: str, name: str, layout: dict[str, dict[str, list[str]]]) -> str:
    having = [repr(other) for other, by_class in layout.items() if by_class.get(name)]
    where = f"; {having[0]} has it" if having else ", nor in any other"
    return (
        f"class {name!r} has no pictures in domain {domain!r} of {root}{where}; "
        "every class must be there in every domain: add pictures, or take the class out of all domains"
    )


def _folders(parent: Path) -> list[Path]:
    return sorted(
        (child for child in parent.iterdir() if child.is_dir() and not child.name.startswith(".")),
        key=lambda child: child.name,
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _pictures(folder: Path) -> Iterator[Path]:
    """The pictures in ``folder`` and below: folders sorted by path, in each the files by name."""
    seen = {folder.resolve()}
    found = []
    for place, inner, names in os.walk(folder, followlinks=True):
        # A link to a folder above would be walked for ever.
        inner[:] = [name for name in inner if not name.startswith(".") and _first_visit(Path(place, name), seen)]
        found.append((place, sorted(names)))
    for place, names in sorted(found):
        yield from (path for name in names if _is_picture(path := Path(place, name)))


def _first_visit(folder: Path, seen: set[Path]) -> bool:
    real = folder.resolve()
    first = real not in seen
    seen.add(real)
    return first
