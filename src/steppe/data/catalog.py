"""Opening a data set by name or by folder, and what there is to open."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steppe.data.domains import DomainDataset
from steppe.data.emoji import EMBEDDED, EmojiStyles, embedded_emoji, full_directory, full_emoji, is_emoji_directory
from steppe.data.folders import ImageFolders
from steppe.data.mnist import ColoredMNIST, RotatedMNIST, mnist_from_spec
from steppe.data.mnist_files import mnist_directory
from steppe.errors import SteppeError, unknown_name


@dataclass(frozen=True)
class _Named:
    """A set with a name: what opens it, where it lies; for one that has to be fetched, by what, and its domains."""

    open: Callable[[], DomainDataset]
    where: Callable[[], Path]
    licence: str
    fetch: str = ""
    domains: Callable[[], tuple[str, ...]] = tuple


_NAMED = {
    "emoji": _Named(embedded_emoji, lambda: EMBEDDED, EmojiStyles.licence),
    "emoji-full": _Named(full_emoji, full_directory, EmojiStyles.licence, "emoji", lambda: embedded_emoji().domains),
    "rotated-mnist": _Named(RotatedMNIST, mnist_directory, RotatedMNIST.licence, "mnist", lambda: RotatedMNIST.domains),
    "colored-mnist": _Named(ColoredMNIST, mnist_directory, ColoredMNIST.licence, "mnist", lambda: ColoredMNIST.domains),
}


@dataclass(frozen=True)
class DatasetRow:
    """One line of ``steppe data list``; the counts are None for a set that is not there yet."""

    name: str
    domains: tuple[str, ...]
    classes: int | None
    pictures: int | None
    where: Path
    licence: str
    status: str


def dataset_names() -> tuple[str, ...]:
    """The names that :func:`open_dataset` knows besides folders."""
    return tuple(_NAMED)


def open_dataset(spec: str | Path, *, verify: bool = True, progress: bool = False) -> DomainDataset:
    """The data set called ``spec``, or the one in the folder ``spec`` (``root/<domain>/<class>/<pictures>``).

    A name wins over a folder of the same name in the current directory; write ``./emoji`` for the folder. The two made
    of MNIST take a size and a seed, ``rotated-mnist-6000@3`` (:func:`~steppe.data.mnist.mnist_from_spec`), and may be
    asked for in the folder that holds MNIST's files: ``/data/mnist/rotated-mnist``.

    Args:
        verify: decode every picture of a folder first (remembered for the next time), so that a broken one is found
            now and not an hour into training.
        progress: show a bar while that is done.

    Raises:
        SteppeError: neither a known name (with near matches) nor a folder, a folder that is not laid out like this,
            or a picture that cannot be read (with its path).
    """
    dataset = _open(spec)
    if verify:
        dataset.verify(progress=progress)
    return dataset


def check_dataset(spec: str | Path, *, progress: bool = False) -> tuple[str, ...]:
    """Opens every picture of a data set and returns what is wrong, one line each; empty when nothing is."""
    try:
        return _open(spec).problems(progress=progress)
    except SteppeError as error:
        return (str(error),)


def list_datasets() -> tuple[DatasetRow, ...]:
    """The known data sets, with where they lie and whether they are there."""
    rows = []
    for name, named in _NAMED.items():
        classes, pictures = None, None
        try:
            dataset = named.open()
            domains, classes = dataset.domains, len(dataset.classes)
            pictures = sum(map(dataset.size, domains))
        except SteppeError:
            domains, status = named.domains(), f"not fetched: steppe data fetch {named.fetch}"
        else:
            status = "fetched" if named.fetch else "ships with steppe"
        rows.append(DatasetRow(name, domains, classes, pictures, named.where(), named.licence, status))
    return tuple(rows)


def _open(spec: str | Path) -> DomainDataset:
    if isinstance(spec, str) and spec in _NAMED:
        return _NAMED[spec].open()
    made = mnist_from_spec(spec) if isinstance(spec, str) else None
    if made is not None:
        return made
    path = Path(spec).expanduser()
    try:
        exists = path.exists()
        beside = not exists and path.parent.is_dir()
    except OSError as fault:
        raise SteppeError(f"cannot read {path.absolute()}: {fault.strerror}") from fault
    if not exists:
        made = mnist_from_spec(path.name, path.parent) if beside else None
        if made is not None:
            return made
        text = os.fspath(spec)
        if isinstance(spec, Path) or os.sep in text or text in (".", ".."):
            raise SteppeError(f"there is no folder {path.absolute()}")
        error = unknown_name("data set", text, _NAMED)
        raise SteppeError(f"{error}; nor is there a folder of that name in {Path.cwd()}")
    if is_emoji_directory(path):
        return full_emoji(path.absolute())
    return ImageFolders(path)
