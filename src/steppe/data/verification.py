"""Every picture of a folder decoded before training starts, and the result remembered.

One JSON file a folder in the cache holds, for each picture, its size and modification time, a hash of its content and
what was wrong with it, if anything. A picture whose size and time are unchanged is not read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from steppe.data.cache import cache_directory, write_atomically
from steppe.data.pictures import decoding_problem

FORMAT_VERSION = 1
BLOCK = 1024  # pictures handed to the threads at a time: an interrupt need not wait for more, nor memory hold more


class Record(NamedTuple):
    """What is known of one picture: of the file with this size (bytes) and modification time (ns)."""

    size: int
    modified: int
    digest: str
    problem: str


def survey(root: Path, files: Sequence[str], *, progress: bool = False, again: bool = False) -> dict[str, Record]:
    """relative path → record of each of ``files``; those not known, changed or bad are read and decoded, in threads.

    What was found is remembered, also when this is interrupted.

    Args:
        progress: a bar on standard error shows how far it is.
        again: read and decode all of them: bits that a disk has lost change neither size nor time of a file.
    """
    memory = _memory(root)
    remembered = _recall(memory)
    known = {} if again else remembered
    records: dict[str, Record] = {}
    bar = Progress(
        TextColumn("checking pictures"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not progress,
    )
    try:
        with bar:
            for file, record in bar.track(_examined(root, files, known), total=len(files)):
                records[file] = record
    except BaseException:
        _remember(memory, root, remembered | records)
        raise
    if records != remembered:
        _remember(memory, root, records)
    return records


def _examined(root: Path, files: Sequence[str], known: dict[str, Record]) -> Iterator[tuple[str, Record]]:
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, len(files), BLOCK):
            block = files[start : start + BLOCK]
            # Here and not in the threads: to look whether a file has changed takes less time than to hand it over.
            kept = {file: known[file] for file in block if file in known and _unchanged(f"{root}/{file}", known[file])}
            rest = [file for file in block if file not in kept]
            fresh = dict(zip(rest, pool.map(lambda file: _examine(root / file), rest), strict=True))
            yield from ((file, kept[file] if file in kept else fresh[file]) for file in block)


def _unchanged(path: str, known: Record) -> bool:
    """What was bad counts as changed: it may have been a passing fault of a network drive."""
    try:
        status = os.stat(path)  # noqa: PTH116 - half a million times
    except OSError:
        return False
    return not known.problem and (known.size, known.modified) == (status.st_size, status.st_mtime_ns)


def _examine(path: Path) -> Record:
    try:
        status = path.stat()
        content = path.read_bytes()
    except OSError as error:
        return Record(0, 0, "", f"cannot read the picture {path}: {error.strerror or error}")
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return Record(status.st_size, status.st_mtime_ns, digest, decoding_problem(path, content))


def _memory(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return cache_directory() / "checked" / f"{name}.json"


def _recall(memory: Path) -> dict[str, Record]:
    try:
        stored = json.loads(memory.read_bytes())
        if stored["format"] != FORMAT_VERSION:
            return {}
        return {file: Record(*record) for file, record in stored["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}  # there is none yet, or it is not ours: everything is looked at again


def _remember(memory: Path, root: Path, records: dict[str, Record]) -> None:
    stored = {"format": FORMAT_VERSION, "root": str(root), "files": records}
    # Without a writable cache the check is as good, only not remembered.
    with contextlib.suppress(OSError):
        write_atomically(memory, json.dumps(stored).encode())
