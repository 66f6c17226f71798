"""The list of a folder's pictures with their sizes and digests, so that later damage is named file by file.

``steppe data fetch`` writes one when a set is there, ``steppe data check --remember`` for any folder: a file in the
folder itself, ``.steppe-manifest.gz``, which moves with a copy. (A file and not a folder: DomainBed takes every folder
of a set for a domain.) It is text: a line of JSON that says what it is, then for each picture the BLAKE2b digest of its
content (16 bytes in hex), its size in bytes and its path relative to the folder, with tabs between.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from steppe.data.cache import write_atomically
from steppe.data.verification import Record
from steppe.errors import SteppeError

NAME = ".steppe-manifest.gz"
FORMAT_VERSION = 1


class Entry(NamedTuple):
    """What is remembered of one picture: the digest of its content, and its size in bytes."""

    digest: str
    size: int


def manifest_path(root: Path) -> Path:
    """Where the manifest of the folder ``root`` lies."""
    return root / NAME


def write_manifest(root: Path, records: Mapping[str, Record]) -> Path:
    """Remembers ``records`` (relative path → what the survey found) as the state of ``root``.

    Raises:
        SteppeError: the folder cannot be written.
    """
    head = {"steppe": "pictures of this folder", "format": FORMAT_VERSION, "files": len(records)}
    lines = [f"{record.digest}\t{record.size}\t{_quoted(file)}" for file, record in sorted(records.items())]
    path = manifest_path(root)
    # No time in the head: the manifest of the same pictures is the same file.
    content = gzip.compress("\n".join([json.dumps(head), *lines, ""]).encode(), mtime=0)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise SteppeError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read_manifest(root: Path) -> dict[str, Entry] | None:
    """relative path → what is remembered of it; None where nothing is.

    Raises:
        SteppeError: there is a manifest, and it cannot be read or is damaged.
    """
    path = manifest_path(root)
    try:
        # Not splitlines(), which would also cut at the odder line ends that a name may hold.
        head, *lines = gzip.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n")
        about = json.loads(head)
        if about["format"] != FORMAT_VERSION:
            raise SteppeError(f"{path} has format {about['format']!r}, this steppe reads {FORMAT_VERSION}; {_REMEDY}")
        rows = (line.split("\t", 2) for line in lines)
        entries = {json.loads(f'"{file}"'): Entry(digest, int(size)) for digest, size, file in rows}
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError) as error:
        if isinstance(error, SteppeError):
            raise
        raise SteppeError(f"cannot read {path}: {error}; {_REMEDY}") from error
    if len(entries) != about["files"]:
        raise SteppeError(f"{path} lists {len(entries)} pictures and announces {about['files']}; {_REMEDY}")
    return entries


def missing_and_surplus(listed: Collection[str], present: Collection[str]) -> Iterator[str]:
    """A line for each file that is listed and not there, then for each that is there and not listed."""
    yield from (f"missing: {file}" for file in sorted(set(listed) - set(present)))
    yield from (f"surplus: {file}" for file in sorted(set(present) - set(listed)))


def changed(entries: Mapping[str, Entry], records: Mapping[str, Record]) -> Iterator[str]:
    """A line for each picture whose content is not what is remembered of it."""
    for file in sorted(set(entries) & set(records)):
        entry, record = entries[file], records[file]
        if record.digest and record.digest != entry.digest:
            sizes = "" if record.size == entry.size else f": {record.size:,} bytes instead of {entry.size:,}"
            yield f"changed: {file}{sizes}"


_REMEDY = "remove it; `steppe data check --remember` writes another"


def _quoted(file: str) -> str:
    """A path in which tabs and line ends cannot break the lines."""
    return json.dumps(file, ensure_ascii=False)[1:-1]
