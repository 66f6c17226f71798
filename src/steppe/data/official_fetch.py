"""`steppe data fetch pacs`: DomainBed's download, resumable, and never half there.

Everything happens in a hidden folder beside the one that is to be: archives are fetched into it (a part is continued),
each is unpacked once, the figures are held against the official ones, and only then is the finished folder renamed to
its name. Whatever ends the process, the same command goes on where it was.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steppe.data.archives import BrokenArchiveError, unpack
from steppe.data.checking import check_official, remembered
from steppe.data.download import download, on_terminal
from steppe.data.folders import absolute
from steppe.data.official import OFFICIAL, Official, data_directory
from steppe.data.official_folders import OfficialFolders
from steppe.data.official_sources import SOURCES, Download, Source, places_of
from steppe.errors import SteppeError, unknown_name

LOCK = "lock"
DONE = ".unpacked"


def fetch_official(
    which: str | Official, out: Path | None = None, packages: Path | None = None, *, source: Source | None = None
) -> Path:
    """Puts a set into a folder in DomainBed's layout, checked and remembered, and returns that.

    Args:
        which: the set, by its name or as an entry of the table.
        out: the set's folder; by default where ``open_dataset`` looks: in ``$STEPPE_DATA``, else in the cache.
        packages: a folder with the archives under the names of :mod:`steppe.data.official_sources`; nothing is fetched
            then, and nothing in it is changed.
        source: other addresses, such as those of a mirror of one's own.

    Raises:
        SteppeError: there is no such set, an archive cannot be fetched, is damaged or missing, the figures are not the
            official ones, the folder holds something else, or another process is at it.
    """
    if isinstance(which, str) and which not in OFFICIAL:
        raise unknown_name("data set to fetch", which, OFFICIAL)
    official = OFFICIAL[which] if isinstance(which, str) else which
    source = source or SOURCES[official.name]
    packages = None if packages is None else absolute(packages)
    root = data_directory() / official.folder if out is None else absolute(out)
    progress = on_terminal()
    if _empty(root) or _workshop_of(root).exists():
        with _workshop(root) as workshop:
            if _empty(root):
                tree = _made(official, source, workshop, packages, progress=progress)
                _check_figures(official, tree, workshop)
                _move_in(tree, root)
    _check_present(official, root)
    if not remembered(root):
        findings = check_official(official, root, progress=progress, remember=True)
        if findings.problems:
            raise SteppeError(f"{root} is there, with faults:\n" + "\n".join(findings.problems[:5]))
    return root


def _workshop_of(root: Path) -> Path:
    return root.parent / f".{root.name}.fetching"


@contextmanager
def _workshop(root: Path) -> Iterator[Path]:
    """The hidden folder beside ``root``, held by this process; removed when all went well."""
    workshop = _workshop_of(root)
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        lock = (workshop / LOCK).open("a")
    except OSError as error:
        raise SteppeError(f"cannot write {workshop}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SteppeError(f"another process is fetching into {root}") from None
        yield workshop
        shutil.rmtree(workshop, ignore_errors=True)


def _made(official: Official, source: Source, workshop: Path, packages: Path | None, *, progress: bool) -> Path:
    """The set's folder in the workshop, with everything unpacked."""
    tree = workshop / "set"
    tree.mkdir(exist_ok=True)
    for each in source.lists:
        _obtained(each, tree, packages, official, progress=progress, copy=True)
    for archive in source.archives:
        done = workshop / f"{archive.file}{DONE}"
        if done.exists():
            continue
        path = _obtained(archive, workshop / "archives", packages, official, progress=progress)
        try:
            # An archive that was stopped in the middle is unpacked from its beginning, over what is there.
            if not unpack(path, tree, places_of(official, archive, tree), progress=progress):
                raise BrokenArchiveError(f"{path} holds no pictures of {official.title}")
        except BrokenArchiveError as error:
            if packages is not None:
                raise SteppeError(f"{error}. Get it again: {archive.address}") from error
            path.unlink()
            raise SteppeError(f"{error}. It was removed. {by_hand(official, archive)}") from error
        done.touch()
    return tree


def _obtained(
    wanted: Download, folder: Path, packages: Path | None, official: Official, *, progress: bool, copy: bool = False
) -> Path:
    """The file ``wanted``: out of ``packages`` (as it lies there, or copied into ``folder``), or fetched."""
    path = folder / wanted.file
    if packages is None:
        try:
            download(wanted.address, path, progress=progress)
        except SteppeError as error:
            raise SteppeError(f"{error}. {by_hand(official, wanted)}") from error
        return path
    found = wanted.find(packages)
    if found is None:
        raise SteppeError(f"there is no {' or '.join((wanted.file, *wanted.also))} in {packages}; get {wanted.address}")
    if not copy:
        return found
    try:
        shutil.copyfile(found, path)
    except OSError as error:
        raise SteppeError(f"cannot copy {found} to {path}: {error.strerror or error}") from error
    return path


def by_hand(official: Official, wanted: Download) -> str:
    """What a person can do where a program is refused."""
    return (
        f"The same command goes on from here. By hand: open {wanted.address} in a browser, save it as {wanted.file} in "
        f"a folder, and run `steppe data fetch {official.name} --packages FOLDER`; about the set: {official.page}"
    )


def _check_figures(official: Official, tree: Path, workshop: Path) -> None:
    try:
        OfficialFolders(official, tree)
    except SteppeError as error:
        raise SteppeError(
            f"what was fetched is not {official.title} as published: {_reason(error)}. It is kept in {workshop}: "
            f"remove that to begin anew, or move {tree} elsewhere and open it as it is"
        ) from error


def _check_present(official: Official, root: Path) -> None:
    try:
        OfficialFolders(official, root)
    except SteppeError as error:
        raise SteppeError(
            f"{root} exists and is not {official.title} as published: {_reason(error)}. Move it away, or name another "
            "folder with --out"
        ) from error


def _reason(error: SteppeError) -> str:
    """The differences out of the message of :class:`OfficialFolders`."""
    return str(error).partition(" as published: ")[2].partition(". `steppe")[0] or str(error)


def _move_in(tree: Path, root: Path) -> None:
    try:
        if root.is_dir():
            root.rmdir()
        os.rename(tree, root)  # noqa: PTH104 - never over something, as Path.replace would
    except OSError as error:
        raise SteppeError(f"cannot put {tree} into its place {root}: {error.strerror or error}") from error


def _empty(root: Path) -> bool:
    """Whether nothing is there yet, or an empty folder."""
    try:
        return not any(root.iterdir())
    except FileNotFoundError:
        return True
    except OSError as error:
        raise SteppeError(f"cannot read {root}: {error.strerror or error}") from error
