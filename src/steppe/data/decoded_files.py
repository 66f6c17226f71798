"""Files of decoded pictures: immutable shards, each with its own table of contents at the end.

A shard is the pixels of some hundred pictures (uint8, RGB, row by row, one picture after the other), a table in JSON,
and 32 bytes that say where the table is and what its checksum is. It is written under another name, synced and then
renamed to one that no other shard ever had; so whoever sees a shard sees all of it, and what was seen once stays true
for as long as the file exists. There is no file over the shards that could disagree with them: what a cache holds is
the union of their tables, of two entries for one picture the one in the shard with the higher number.

Libraries that were considered: ffcv keeps pictures in one file that is written in one go, is compiled against OpenCV,
and its loader replaces torch's; MosaicML Streaming, LitData and WebDataset are made for streams of samples, not for
access in the order of (seed, step); LMDB's one file has a largest size that is set in advance, and must not lie on a
network disk; Zarr, HDF5 and Arrow want arrays of one shape, or copy what they read. What is needed is an offset into a
mapped file, which Python and NumPy have: so these are plain files.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

Pixels = NDArray[np.uint8]
"""A decoded picture, uint8 [H, W, 3]."""

MAGIC = b"steppepx"
FORMAT_VERSION = 1
DECODER_VERSION = 1
"""Of the rules in :mod:`steppe.data.pictures`; to be raised whenever they change a pixel."""
FOOTER = struct.Struct("<QQII8s")  # where the table begins, its bytes, its CRC-32, FORMAT_VERSION, MAGIC
NAME = re.compile(r"(\d{6})-[0-9a-f]{8}\.pixels")
PART = ".part"


class Identity(NamedTuple):
    """By what a changed file is noticed, as when pictures are checked: bytes, modification time in ns."""

    size: int
    modified: int


class Entry(NamedTuple):
    """One picture of a shard."""

    key: str
    source: Identity
    offset: int
    height: int
    width: int
    checksum: int  # CRC-32 of the pixels

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return self.height * self.width * 3


class DamagedShardError(Exception):
    """A file with a shard's name that is none: cut short, overwritten, or of another version."""


@cache
def decoder() -> str:
    """What turned files into pixels: other versions may decode to other bits, so their shards are not used."""
    codecs = ("jpg", "libjpeg_turbo", "webp", "zlib", "libtiff")
    versions = [f"{name} {features.version(name)}" for name in codecs]
    return ", ".join([f"steppe's rules {DECODER_VERSION}", f"pillow {PIL.__version__}", *versions])


def identity(path: Path) -> Identity | None:
    """The file's identity; None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Identity(status.st_size, status.st_mtime_ns)


class MappedFile:
    """The pixels of a shard, mapped when they are first asked for. Pickled it is a path, mapped anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None

    def pixels(self, offset: int, height: int, width: int) -> Pixels:
        """A picture as a read-only view of the file.

        Raises:
            OSError: the file cannot be opened, or is shorter than it was.
        """
        count = height * width * 3
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if offset + count > len(self._map):
            raise OSError(f"{self.path} is shorter than it was")
        with suppress(OSError, AttributeError):  # read ahead in one go what is not in memory yet
            start = offset - offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, offset + count - start)
        return np.frombuffer(self._map, np.uint8, count, offset).reshape(height, width, 3)

    def release(self) -> None:
        """Take the pages out of this process's memory; arrays given out before stay valid and are read again."""
        if self._map is not None:
            with suppress(OSError, AttributeError):
                self._map.madvise(mmap.MADV_DONTNEED)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_map": None}


class Shard:
    """A finished shard's table of contents, and its pixels.

    Attributes:
        number: its place among the shards: a higher one is newer.
        decoder: what decoded its pictures, see :func:`decoder`.
        size: of the file, in bytes.

    Raises:
        DamagedShardError: the file is not a whole shard.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name[:6])
        self.decoder, self.entries, self.size = _read_table(path)
        self.file = MappedFile(path)


def shards(directory: Path) -> Iterator[Shard | Path]:
    """The shards in ``directory``, oldest first; in place of one that is damaged, its path."""
    try:
        names = sorted(name for name in os.listdir(directory) if NAME.fullmatch(name))  # noqa: PTH208 - names only
    except OSError:
        return
    for name in names:
        try:
            yield Shard(directory / name)
        except DamagedShardError:
            yield directory / name
        except OSError:  # gone in the meantime, or not for us to read
            continue


class ShardWriter:
    """Writes one shard; nothing of it is seen before :meth:`finish`.

    Raises:
        OSError: here and in every method: it cannot be written; then :meth:`discard` it.
    """

    def __init__(self, directory: Path, number: int) -> None:
        self.entries: list[Entry] = []
        self.size = 0
        self._path = directory / f"{number:06d}-{secrets.token_hex(4)}.pixels"
        self._temporary = self._path.with_name(f".{self._path.name}{PART}")
        # Unbuffered: what a full disk refuses is refused at this picture, and nothing is left for the way out.
        self._file = self._temporary.open("wb", buffering=0)

    def add(self, key: str, source: Identity, pixels: Pixels, checksum: int) -> None:
        """Append a picture."""
        height, width, _ = pixels.shape
        self._write(np.ascontiguousarray(pixels).data.cast("B"))
        self.entries.append(Entry(key, source, self.size, height, width, checksum))
        self.size += pixels.nbytes

    def finish(self) -> None:
        """Make it a shard: table, sync, rename. What a refused picture left behind its end is cut off before."""
        self._file.seek(self.size)
        self._file.truncate()
        table = json.dumps({"decoder": decoder(), "entries": self.entries}).encode()
        footer = FOOTER.pack(self.size, len(table), zlib.crc32(table), FORMAT_VERSION, MAGIC)
        self._write(memoryview(table + footer))
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)
        descriptor = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def discard(self) -> None:
        """Leave nothing behind; without effect on a finished shard."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _write(self, content: memoryview) -> None:
        while content:
            content = content[self._file.write(content) :]


def remove_parts(directory: Path) -> None:
    """Delete what killed writers left behind; only for the one that holds the lock."""
    for path in directory.glob(f".*{PART}"):
        with suppress(OSError):
            path.unlink()


def _read_table(path: Path) -> tuple[str, list[Entry], int]:
    """Decoder, entries and the file's size in bytes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < FOOTER.size:
            raise DamagedShardError(path)
        file.seek(size - FOOTER.size)
        start, length, checksum, version, magic = FOOTER.unpack(file.read(FOOTER.size))
        if magic != MAGIC or version != FORMAT_VERSION or start + length + FOOTER.size != size:
            raise DamagedShardError(path)
        file.seek(start)
        table = file.read(length)
    if zlib.crc32(table) != checksum:
        raise DamagedShardError(path)
    content = json.loads(table)
    entries = [Entry(key, Identity(*source), *rest) for key, source, *rest in content["entries"]]
    return content["decoder"], entries, size
