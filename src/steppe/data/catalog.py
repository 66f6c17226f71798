"""Opening a data set by name or by folder, and what there is to open."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steppe.data.checking import Findings, check, check_folders, check_official, remembered
from steppe.data.domains import DomainDataset
from steppe.data.emoji import EMBEDDED, EmojiStyles, embedded_emoji, full_directory, full_emoji, is_emoji_directory
from steppe.data.folders import ImageFolders
from steppe.data.mnist import ColoredMNIST, RotatedMNIST, mnist_from_spec
from steppe.data.mnist_files import mnist_directory
from steppe.data.official import OFFICIAL, VARIABLE, Official, data_directory, locate, recognise, sets_within
from steppe.data.official_folders import AS_IT_IS, OfficialFolders
from steppe.errors import SteppeError, unknown_name


@dataclass(frozen=True)
class _Named:
    """A set with a name: what opens it, where it lies; for one that has to be fetched, by what, and its domains.

    One of DomainBed's sets of pictures has its entry in the table of those.
    """

    open: Callable[[], DomainDataset]
    where: Callable[[], Path]
    licence: str
    fetch: str = ""
    domains: Callable[[], tuple[str, ...]] = tuple
    official: Official | None = None


def _official(official: Official) -> _Named:
    return _Named(
        lambda: OfficialFolders(official),
        lambda: data_directory() / official.folder,
        official.licence,
        official.name,
        lambda: tuple(domain.name for domain in official.domains),
        official,
    )


_NAMED = {
    "emoji": _Named(embedded_emoji, lambda: EMBEDDED, EmojiStyles.licence),
    "emoji-full": _Named(full_emoji, full_directory, EmojiStyles.licence, "emoji", lambda: embedded_emoji().domains),
    "rotated-mnist": _Named(RotatedMNIST, mnist_directory, RotatedMNIST.licence, "mnist", lambda: RotatedMNIST.domains),
    "colored-mnist": _Named(ColoredMNIST, mnist_directory, ColoredMNIST.licence, "mnist", lambda: ColoredMNIST.domains),
    **{name: _official(official) for name, official in OFFICIAL.items()},
}


@dataclass(frozen=True)
class DatasetRow:
    """One line of ``steppe data list``.

    The counts are None for a set that is made when it is fetched and is not there; for one of DomainBed's sets of
    pictures they are the official ones (of today's version), whether it is there or not.
    """

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

    DomainBed's sets of pictures (``pacs``, ``vlcs``, ``officehome``, ``terra-incognita``, ``domainnet``) are looked for
    in ``$STEPPE_DATA``, the folder that DomainBed calls ``--data_dir``, and in the cache. A folder that has the layout
    of one is that set, wherever it lies, and is held against the official figures; ``folder:/data/PACS`` opens it as
    any other folder.

    Args:
        verify: decode every picture of a folder first (remembered for the next time), so that a broken one is found
            now and not an hour into training.
        progress: show a bar while that is done.

    Raises:
        SteppeError: neither a known name (with near matches) nor a folder, a folder that is not laid out like this,
            one of DomainBed's sets with other figures than the official ones, or a picture that cannot be read (with
            its path).
    """
    dataset = _open(spec)
    if verify:
        dataset.verify(progress=progress)
    return dataset


def check_dataset(spec: str | Path, *, progress: bool = False) -> tuple[str, ...]:
    """Opens every picture of a data set and returns what is wrong, one line each; empty when nothing is."""
    try:
        return examine_dataset(spec, progress=progress).lines
    except SteppeError as error:
        return (str(error),)


def examine_dataset(
    spec: str | Path, *, progress: bool = False, again: bool = False, remember: bool = False
) -> Findings:
    """What :func:`steppe.data.checking.check_official` finds in a data set, also in one that cannot be opened for it.

    Raises:
        SteppeError: there is nothing to look at: no such set or folder, or it cannot be read.
    """
    options = {"progress": progress, "again": again, "remember": remember}
    named = _NAMED.get(spec) if isinstance(spec, str) else None
    if named is not None:
        if named.official is not None:
            return check_official(named.official, locate(named.official), **options)
        return check(named.open(), **options)
    text = os.fspath(spec)
    if text.startswith(AS_IT_IS):
        return check_folders(Path(text.removeprefix(AS_IT_IS)), **options)
    root = Path(spec).expanduser()
    official = recognise(root)
    if official is not None:
        return check_official(official, root, **options)
    return check_folders(root, **options) if remembered(root) else check(_open(spec), **options)


def list_datasets() -> tuple[DatasetRow, ...]:
    """The known data sets, with where they lie and whether they are there.

    Of DomainBed's sets of pictures only the folders are looked at; ``steppe data check`` counts.
    """
    rows = []
    for name, named in _NAMED.items():
        if named.official is not None:
            rows.append(_official_row(named, named.official))
            continue
        classes, pictures = None, None
        try:
            dataset = named.open()
            domains, classes = dataset.domains, len(dataset.classes)
            pictures = sum(map(dataset.size, domains))
        except SteppeError:
            domains, status = named.domains(), _absent(named)
        else:
            status = "here" if named.fetch else "ships with steppe"
        rows.append(DatasetRow(name, domains, classes, pictures, named.where(), named.licence, status))
    return tuple(rows)


def _official_row(named: _Named, official: Official) -> DatasetRow:
    where, status = named.where(), _absent(named)
    try:
        where = locate(official)
    except SteppeError:
        pass
    else:
        status = "here" if recognise(where) is official else f"not whole: steppe data check {official.name}"
    total = official.versions[0].total
    return DatasetRow(official.name, named.domains(), len(official.classes), total, where, official.licence, status)


def _absent(named: _Named) -> str:
    return f"not here: steppe data fetch {named.fetch}"


def _open(spec: str | Path) -> DomainDataset:
    if isinstance(spec, str) and spec in _NAMED:
        return _NAMED[spec].open()
    text = os.fspath(spec)
    if text.startswith(AS_IT_IS):
        plain = ImageFolders(Path(text.removeprefix(AS_IT_IS)))
        plain.spec = f"{AS_IT_IS}{plain.root}"
        return plain
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
        if isinstance(spec, Path) or os.sep in text or text in (".", ".."):
            raise SteppeError(f"there is no folder {path.absolute()}")
        error = unknown_name("data set", text, _NAMED)
        raise SteppeError(f"{error}; nor is there a folder of that name in {Path.cwd()}")
    if is_emoji_directory(path):
        return full_emoji(path.absolute())
    official = recognise(path)
    if official is not None:
        return OfficialFolders(official, path)
    within = sets_within(path)
    if within:
        first, official = next(iter(within.items()))
        hint = f", or {official.name} with {VARIABLE}={path.absolute()}" if first.name == official.folder else ""
        raise SteppeError(
            f"{path.absolute()} holds data sets and is none itself: open the folder {first.absolute()}{hint}"
        )
    return ImageFolders(path)
