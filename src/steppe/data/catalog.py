"""Opening a data set by name or by folder, and what there is to open."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steppe.data.domains import DomainDataset
from steppe.data.emoji import EMBEDDED, EmojiStyles, embedded_emoji, full_directory, full_emoji, is_emoji_directory
from steppe.data.folders import ImageFolders
from steppe.errors import SteppeError, unknown_name

_NAMED: dict[str, Callable[[], EmojiStyles]] = {"emoji": embedded_emoji, "emoji-full": full_emoji}


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

    A name wins over a folder of the same name in the current directory; write ``./emoji`` for the folder.

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
    for name, open_set in _NAMED.items():
        where = EMBEDDED if name == "emoji" else full_directory()
        try:
            dataset = open_set()
        except SteppeError:
            domains, classes, pictures = embedded_emoji().domains, None, None
            status = "not fetched: steppe data fetch emoji"
        else:
            domains, classes = dataset.domains, len(dataset.classes)
            pictures = sum(dataset.size(domain) for domain in domains)
            status = "ships with steppe" if name == "emoji" else "fetched"
        rows.append(DatasetRow(name, domains, classes, pictures, where, EmojiStyles.licence, status))
    return tuple(rows)


def _open(spec: str | Path) -> DomainDataset:
    if isinstance(spec, str) and spec in _NAMED:
        return _NAMED[spec]()
    path = Path(spec).expanduser()
    try:
        exists = path.exists()
    except OSError as fault:
        raise SteppeError(f"cannot read {path.absolute()}: {fault.strerror}") from fault
    if not exists:
        text = os.fspath(spec)
        if isinstance(spec, Path) or os.sep in text or text in (".", ".."):
            raise SteppeError(f"there is no folder {path.absolute()}")
        error = unknown_name("data set", text, _NAMED)
        raise SteppeError(f"{error}; nor is there a folder of that name in {Path.cwd()}")
    if is_emoji_directory(path):
        return full_emoji(path.absolute())
    return ImageFolders(path)
