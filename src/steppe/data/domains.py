"""What a data set of several domains is to the rest of steppe: pictures, labels and names, nothing about files."""

from __future__ import annotations

import abc

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steppe.errors import SteppeError, unknown_name

Indices = NDArray[np.int64]
Names = NDArray[np.str_]


class DomainDataset(abc.ABC):
    """Pictures of the same classes in several domains.

    A picture is addressed by its domain's name and an index from 0 to ``size(domain) - 1``. The order within a domain
    is part of the data set's identity: splits are drawn from it.

    Attributes:
        name: what reports call the set: ``"emoji"``, or a folder's own name.
        spec: what :func:`steppe.data.open_dataset` opens again; the absolute path for a folder.
        classes: class names; a label is an index into them.
        domains: domain names; their order fixes the domain index of DomainBed's splits.
        licence: under which terms the pictures may be used, or an empty string where that is not known.
    """

    name: str
    spec: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    licence: str = ""

    @abc.abstractmethod
    def labels(self, domain: str) -> Indices:
        """The label of every picture of ``domain``, int64 [n]."""

    @abc.abstractmethod
    def image(self, domain: str, index: int) -> Image.Image:
        """The picture, in mode RGB."""

    @abc.abstractmethod
    def key(self, domain: str, index: int) -> str:
        """A stable name of the picture: its code point, or its path relative to the root with forward slashes."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that change when the pictures, their labels or their order change, and only then."""

    def concepts(self, domain: str) -> Names | None:
        """What each picture of ``domain`` shows, str [n]: equal strings are the same thing drawn in another domain.

        None where the set has no such notion; then no split can keep concepts apart.
        """
        self.check_domain(domain)
        return None

    def problems(self, *, progress: bool = False) -> tuple[str, ...]:
        """Opens every picture and says what is wrong, one line each; empty when all can be read."""
        found: list[str] = []
        for domain in self.domains:
            for index in range(self.size(domain)):
                try:
                    self.image(domain, index)
                except SteppeError as error:
                    found.append(str(error))
        return tuple(found)

    def verify(self, *, progress: bool = False) -> None:
        """Raises SteppeError unless every picture can be read; for before anything expensive starts."""
        found = self.problems(progress=progress)
        if found:
            more = f"\nand {len(found) - 5} more" if len(found) > 5 else ""
            raise SteppeError("\n".join(found[:5]) + more)

    def size(self, domain: str) -> int:
        """The number of pictures of ``domain``."""
        return len(self.labels(domain))

    def check_domain(self, domain: str) -> None:
        """Raises SteppeError with near matches unless ``domain`` is one of this set's."""
        self._check_name("domain", domain, self.domains)

    def check_class(self, name: str) -> None:
        """Raises SteppeError with near matches unless ``name`` is one of this set's classes."""
        self._check_name("class", name, self.classes)

    def _check_name(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        if name not in known:
            hint = str(unknown_name(kind, name, known)).removeprefix(f"unknown {kind} {name!r}")
            raise SteppeError(f"unknown {kind} {name!r} of {self.name!r}{hint}")
