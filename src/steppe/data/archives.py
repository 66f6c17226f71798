"""Pictures out of zip and tar archives: each member goes where a caller says, and nowhere else."""

from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from steppe.data.download import byte_progress
from steppe.errors import SteppeError

Places = Callable[[str], Collection[str]]
"""A member's path in the archive → where it goes, relative to a folder; nowhere for what is not wanted."""

CHUNK = 2**20


class BrokenArchiveError(SteppeError):
    """A file is no archive, or not a whole one."""


_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


def unpack(archive: Path, folder: Path, places: Places, *, progress: bool = False) -> int:
    """Writes the members of ``archive`` into ``folder``, wherever ``places`` says, and returns how many were written.

    The whole archive is read, so that its checksums hold for what was written. Folders, links and devices in it are
    passed over.

    Raises:
        BrokenArchiveError: it is no whole zip or tar archive.
        SteppeError: a place is outside of ``folder``, or cannot be written.
    """
    written = 0
    with byte_progress(enabled=progress) as bars:
        task = bars.add_task(f"unpacking {archive.name}", total=archive.stat().st_size)
        members = _zipped(archive) if zipfile.is_zipfile(archive) else _tarred(archive)
        try:
            for name, content, position in members:
                targets = [folder / _checked(place, archive) for place in places(name)]
                if targets:
                    _write(content, targets, archive)
                    written += len(targets)
                bars.update(task, completed=position)
        except _BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the archive's
                raise SteppeError(f"cannot read {archive}: {error.strerror or error}") from error
            reason = str(error) or type(error).__name__
            raise BrokenArchiveError(
                f"{archive} is not a whole archive ({reason}); a server that refuses may have sent a page instead"
            ) from error
    return written


def _zipped(archive: Path) -> Iterator[tuple[str, IO[bytes], int]]:
    position = 0
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            position += member.compress_size
            if not member.is_dir():
                with file.open(member) as content:
                    yield member.filename, content, position


def _tarred(archive: Path) -> Iterator[tuple[str, IO[bytes], int]]:
    with archive.open("rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        plain = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if magic == b"\x1f\x8b" else raw
        with tarfile.open(fileobj=plain, mode="r|") as file:
            for member in file:
                content = file.extractfile(member) if member.isreg() else None
                if content is not None:
                    yield member.name, content, raw.tell()
        while plain.read(CHUNK):  # to the end, where gzip's checksum is
            pass


def _checked(place: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(place)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in place or "\0" in place:
        raise SteppeError(f"{archive} has a file that would go outside of the folder: {place!r}")
    return path


def _write(content: IO[bytes], targets: list[Path], archive: Path) -> None:
    first, *copies = targets
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what a full disk refuses must be told from an archive that cannot be read.
        file = first.open("wb", buffering=0)
    except OSError as error:
        raise _unwritable(first, error) from error
    with file:
        while chunk := content.read(CHUNK):
            rest = memoryview(chunk)
            while rest:
                try:
                    rest = rest[file.write(rest) :]
                except OSError as error:
                    raise _unwritable(first, error) from error
    for copy in copies:
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            os.link(first, copy)
        except OSError:
            _copied(first, copy)


def _copied(first: Path, copy: Path) -> None:
    """For file systems without hard links."""
    try:
        copy.write_bytes(first.read_bytes())
    except OSError as error:
        raise _unwritable(copy, error) from error


def _unwritable(path: Path, error: OSError) -> SteppeError:
    return SteppeError(f"cannot write {path}: {error.strerror or error}")
