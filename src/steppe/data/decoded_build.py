"""Filling a cache of decoded pictures: in threads, within a budget, by one process at a time.

Whoever builds holds a lock file, which the operating system takes back however the process ends; who comes second
waits, and finds the work done. A shard is complete before the next is begun, so a build that was killed goes on where
its last shard ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from steppe.data.decoded_files import (
    Entry,
    Identity,
    Pixels,
    Shard,
    ShardWriter,
    decoder,
    identity,
    remove_parts,
    shards,
)
from steppe.data.pictures import UNDECODABLE
from steppe.errors import SteppeError

GB = 10**9
SHARD_BYTES = 512 * 2**20
"""Pixels of a shard, at most; a single picture that is larger has one of its own."""
LOCK = "lock"
POLL_SECONDS = 0.2
MOST_THREADS = 16
"""That decode: no disk takes more, and pictures of 100 megapixels are 300 MB each."""
SPARE_SHARE, SPARE_MOST = 0.05, 10 * GB
SAMPLE = 256
"""Pictures whose headers are read to estimate how much room a set needs."""

Progress = Callable[[int, int], None]
"""Called with the number of pictures that are in the cache and of those that should be."""


class Contents(NamedTuple):
    """What a cache holds."""

    found: dict[str, tuple[Shard, Entry]]  # key → the newest entry, of this decoder; its source may have changed
    shards: list[Shard]
    damaged: list[Path]


@dataclass(frozen=True)
class Budget:
    """How much disk a cache may take.

    Attributes:
        disk: bytes of all its shards.
        spare: bytes of the disk that stay free whatever ``disk`` says; by default a twentieth of it, at most 10 GB.
        shard: bytes of pixels in a shard.
    """

    disk: int
    spare: int | None = None
    shard: int = SHARD_BYTES

    def room(self, directory: Path) -> int:
        """Bytes that may still be written to the disk of ``directory``, which exists; may be negative."""
        usage = shutil.disk_usage(directory)
        spare = min(int(SPARE_SHARE * usage.total), SPARE_MOST) if self.spare is None else self.spare
        return usage.free - spare


def contents(directory: Path) -> Contents:
    """Reads the tables of all shards; takes no lock, and can be done while another process builds."""
    found: dict[str, tuple[Shard, Entry]] = {}
    whole: list[Shard] = []
    damaged: list[Path] = []
    for shard in shards(directory):
        if not isinstance(shard, Shard):
            damaged.append(shard)
            continue
        whole.append(shard)
        if shard.decoder == decoder():
            found.update((entry.key, (shard, entry)) for entry in shard.entries)
    return Contents(found, whole, damaged)


def missing(root: Path, keys: Iterable[str], held: Contents) -> list[str]:
    """The pictures that are not in the cache, or have changed since; files that are not there are left out."""
    wanted = []
    for key in keys:
        now = identity(root / key)
        entry = held.found.get(key)
        if now is not None and (entry is None or entry[1].source != now):
            wanted.append(key)
    return wanted


def average_bytes(paths: Sequence[Path]) -> float:
    """The mean size of a decoded picture, in bytes, from the headers of some that are spread evenly over ``paths``.

    Files that cannot be read are left out; 0 where none can.
    """
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), SAMPLE)).astype(int)] if paths else []
    sizes = []
    for path in chosen:
        with suppress(*UNDECODABLE), Image.open(path) as picture:
            sizes.append(3 * picture.width * picture.height)
    return sum(sizes) / len(sizes) if sizes else 0.0


def build(
    directory: Path,
    root: Path,
    keys: Sequence[str],
    read: Callable[[str], Image.Image],
    budget: Budget,
    *,
    progress: Progress | None = None,
    waiting: Callable[[], None] | None = None,
) -> str:
    """Decode what is missing of the pictures ``root/key``, in this order, for as long as there is room.

    Args:
        directory: of the cache; made where it is not there.
        read: key → the picture, in mode RGB, or a SteppeError; called in several threads.
        progress: told after every picture.
        waiting: called once when another process is building.

    Returns:
        Why it stopped before the end; empty where it did not.

    Raises:
        OSError: the directory cannot be made, or no lock be had in it.
    """
    with build_lock(directory, waiting):
        remove_parts(directory)
        held = contents(directory)
        for path in held.damaged:
            with suppress(OSError):
                path.unlink()
        stale = _stale(root, held)
        held = Contents({k: v for k, v in held.found.items() if v[0] not in stale}, held.shards, [])
        wanted = missing(root, keys, held)
        for shard in stale:  # first, for the room
            with suppress(OSError):
                shard.path.unlink()
        used = sum(shard.size for shard in held.shards if shard not in stale)
        first = max((shard.number for shard in held.shards), default=-1) + 1
        total, present = len(keys), len(keys) - len(wanted)
        told = progress or (lambda done, total: None)
        told(present, total)
        pictures = _decoded(root, wanted, read)
        return _write(directory, pictures, budget, used, first, lambda done: told(present + done, total))


@contextmanager
def build_lock(directory: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the cache for building; waits for whoever holds it.

    Raises:
        OSError: the directory cannot be made or written, or knows no locks.
    """
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / LOCK
        with path.open("a") as file:
            while not _locked(file.fileno()):
                if waiting is not None:
                    waiting()
                    waiting = None
                time.sleep(POLL_SECONDS)
            if _is_still(path, file.fileno()):
                yield
                return
        # Somebody deleted the whole cache while we waited: what we hold is no one's lock.


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _stale(root: Path, held: Contents) -> set[Shard]:
    """The shards of which less than half is still true: what is true of them is decoded again, the rest given up."""
    stale = set()
    for shard in held.shards:
        alive = 0
        for entry in shard.entries:
            newest = held.found.get(entry.key)
            if newest is not None and newest[0] is shard and identity(root / entry.key) == entry.source:
                alive += entry.nbytes
        if 2 * alive < shard.size:
            stale.add(shard)
    return stale


class _Decoded(NamedTuple):
    key: str
    source: Identity
    pixels: Pixels
    checksum: int


def _decode(root: Path, key: str, read: Callable[[str], Image.Image]) -> _Decoded | None:
    """The picture in the file, with what the file was before it was read; None where it cannot be read."""
    before = identity(root / key)
    if before is None:
        return None
    try:
        pixels = np.asarray(read(key))
    except SteppeError:
        return None
    return _Decoded(key, before, pixels, zlib.crc32(pixels.data))


def _decoded(root: Path, wanted: Sequence[str], read: Callable[[str], Image.Image]) -> Generator[_Decoded | None]:
    """The pictures in order, decoded in threads; no more of them are in memory than two a thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(cores, MOST_THREADS)
    queue: deque[Future[_Decoded | None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for key in wanted:
                queue.append(pool.submit(_decode, root, key, read))
                if len(queue) >= 2 * threads:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def _write(
    directory: Path,
    pictures: Generator[_Decoded | None],
    budget: Budget,
    used: int,
    number: int,
    told: Callable[[int], None],
) -> str:
    """Why it stopped before the last of the pictures, or an empty string."""
    writer: ShardWriter | None = None
    try:
        for done, picture in enumerate(pictures, 1):
            told(done)
            if picture is None:
                continue
            size = picture.pixels.nbytes
            if used + size > budget.disk:
                return f"its budget of {budget.disk / GB:.3g} GB is used up"
            if budget.room(directory) < size:
                return "the disk is nearly full"
            if writer is not None and writer.size + size > budget.shard:
                writer.finish()
                writer, number = None, number + 1
            writer = writer or ShardWriter(directory, number)
            writer.add(*picture)
            used += size
        return ""
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return "no space is left on the disk" if full else f"it cannot be written ({error.strerror or error})"
    finally:
        pictures.close()
        if writer is not None:
            # What is there so far is worth keeping, unless not even its table can be written.
            with suppress(OSError, ValueError):  # a ValueError: it was closed, and then could not be renamed
                if writer.entries:
                    writer.finish()
            writer.discard()
