"""Pictures that are decoded once: a data set of picture files whose pixels come from a cache.

The cache lies beside the data, in ``.<name>.steppe-cache``, or, where that folder cannot be written, in steppe's own
cache directory. It holds every picture as it was decoded, at its full size, so that with and without it a run sees the
same pixels. What is not in it (there was no room, the file has changed, a shard is damaged) is decoded as before.
"""

from __future__ import annotations

import itertools
import mmap
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from steppe.data.decoded_build import Budget, Contents, Progress, average_bytes, build, contents, missing
from steppe.data.decoded_files import Pixels, Shard, identity
from steppe.data.decoded_places import CacheOptions, best_place, budget_for, cache_places, obstacle, source_root
from steppe.data.domains import DomainDataset, Indices, Names

LARGE_BYTES = 128 * 128 * 3
"""From this mean size, decoded, pictures are worth a cache: smaller ones are decoded as quickly as they are read."""
MAPPED_BYTES = 2**30
"""Of decoded pictures that count as a process's own memory. Letting them go costs next to nothing: the system keeps
them, and maps them again."""

Say = Callable[[str], None]


class DecodedPictures(DomainDataset):
    """``dataset`` with its pictures out of a cache, in every other respect the same.

    The pixels of a picture are held against their CRC-32 when they are first read after the cache was opened (once for
    all worker processes of a loader); if they are wrong, the picture is decoded, and the damaged shard is deleted so
    that the next run makes it again. Files that change while this object lives are not noticed: what it found when it
    was opened it keeps to, as the data set's fingerprint does.

    Args:
        dataset: the pictures' files.
        held: what is in the cache.
        directory: of the cache.
    """

    def __init__(self, dataset: DomainDataset, held: Contents, directory: Path) -> None:
        for name in ("name", "spec", "licence", "classes", "domains"):
            vars(self)[name] = getattr(dataset, name)
        self.dataset = dataset
        self.directory = directory
        self._touched = 0
        self._shards = [shard.file for shard in held.shards]
        self._places = {domain: _places(dataset, domain, held) for domain in self.domains}
        sizes = np.cumsum([0, *(len(places) for places in self._places.values())])
        self._first = dict(zip(self.domains, sizes.tolist(), strict=False))
        self._checked = _Flags(int(sizes[-1]))

    def image(self, domain: str, index: int) -> Image.Image:
        pixels = self._cached(domain, index)
        return self.dataset.image(domain, index) if pixels is None else Image.fromarray(pixels)

    def pixels(self, domain: str, index: int) -> Pixels:
        """The picture as uint8 [H, W, 3], read-only: out of the cache without a copy."""
        pixels = self._cached(domain, index)
        return np.asarray(self.dataset.image(domain, index)) if pixels is None else pixels

    def held(self, domain: str) -> int:
        """How many pictures of ``domain`` are in the cache."""
        self.check_domain(domain)
        return int((self._places[domain][:, 0] >= 0).sum())

    def labels(self, domain: str) -> Indices:
        return self.dataset.labels(domain)

    def key(self, domain: str, index: int) -> str:
        return self.dataset.key(domain, index)

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()

    def concepts(self, domain: str) -> Names | None:
        return self.dataset.concepts(domain)

    def problems(self, *, progress: bool = False) -> tuple[str, ...]:
        return self.dataset.problems(progress=progress)

    def check_domain(self, domain: str) -> None:
        self.dataset.check_domain(domain)

    def _cached(self, domain: str, index: int) -> Pixels | None:
        self.check_domain(domain)
        shard, offset, height, width, checksum = self._places[domain][index].tolist()
        if shard < 0:
            return None
        try:
            pixels: Pixels = self._shards[shard].pixels(offset, height, width)
        except (OSError, ValueError):
            self._forget(shard)  # deleted, or cut short
            return None
        number = self._first[domain] + index % len(self._places[domain])
        if not self._checked[number]:
            if zlib.crc32(pixels.data) != checksum:
                self._forget(shard, damaged=True)
                return None
            self._checked[number] = 1
        self._touched += pixels.nbytes
        if self._touched > MAPPED_BYTES:
            self._touched = pixels.nbytes
            for mapped in self._shards:
                mapped.release()
        return pixels

    def _forget(self, number: int, *, damaged: bool = False) -> None:
        """Decode the pictures of this shard from now on."""
        for places in self._places.values():
            places[places[:, 0] == number, 0] = -1
        if damaged:
            path = self._shards[number].path
            with suppress(OSError):
                path.unlink()
            warnings.warn(
                f"{path} is damaged: its pictures are decoded in this run, and cached again by the next", stacklevel=4
            )


class _Flags:
    """A byte for each picture, in memory that forked processes share; where processes are spawned, each has its own."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._bytes = mmap.mmap(-1, max(1, count))

    def __getitem__(self, number: int) -> int:
        return self._bytes[number]

    def __setitem__(self, number: int, value: int) -> None:
        self._bytes[number] = value

    def __getstate__(self) -> dict[str, Any]:
        return {"_count": self._count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        _Flags.__init__(self, state["_count"])


def decoded_pictures(
    dataset: DomainDataset,
    options: CacheOptions | None = None,
    *,
    say: Say = lambda message: None,
    progress: Progress | None = None,
) -> DomainDataset:
    """``dataset`` with its pictures out of the cache, which is built first where it has to be; or ``dataset`` itself.

    It is returned as it is where it does not consist of picture files, where a cache is not wanted or not worth it, and
    where none can be had. Whatever is wrong with a cache costs time, never a run.

    Args:
        options: see :class:`CacheOptions`.
        say: told in a sentence what a user should know: where the cache is made, why it is not, that another process
            is making it.
        progress: told, while it is built, how many pictures are in it and of how many.
    """
    options = options or CacheOptions()
    if options.use == "off" or isinstance(dataset, DecodedPictures):
        return dataset
    try:
        return _opened(dataset, options, say, progress)
    except OSError as error:  # folders that may not even be looked at
        say(f"decoded pictures are not kept: {error}")
        return dataset


def _opened(dataset: DomainDataset, options: CacheOptions, say: Say, progress: Progress | None) -> DomainDataset:
    root = source_root(dataset)
    if root is None:
        return dataset
    places = _pictures(dataset)
    keys = list(places)
    directory, held = best_place(root, keys)
    wanted = missing(root, keys, held)
    if wanted:
        budget, average = budget_for(directory, held, options), average_bytes([root / key for key in keys])
        why_not = ""
        if options.use == "auto":
            if average < LARGE_BYTES:
                return dataset
            why_not = obstacle(directory, budget, options, average * len(keys), average * len(wanted))
        if why_not:
            say(f"decoded pictures are not kept: {why_not}")
        else:
            filled = _built(directory, root, places, dataset, budget, say, progress)
            directory, held = filled or (directory, held)
    return DecodedPictures(dataset, held, directory) if held.found else dataset


def decoded_problems(dataset: DomainDataset) -> tuple[str, ...]:
    """Reads the whole cache of ``dataset`` and says what is wrong with it, one line each; empty without a cache.

    A picture that has changed since is no fault: the next run decodes it again.
    """
    root = source_root(dataset.dataset if isinstance(dataset, DecodedPictures) else dataset)
    return () if root is None else cache_problems(root)


def cache_problems(root: Path) -> tuple[str, ...]:
    """The same for the pictures below a folder, whether or not they are a data set."""
    problems = []
    for directory in cache_places(root):
        held = contents(directory)
        problems += [f"{path} is no whole shard of decoded pictures: delete it" for path in held.damaged]
        for shard in held.shards:
            wrong = [entry.key for entry in shard.entries if not _is_right(shard, *entry[2:])]
            if wrong:
                problems.append(f"{shard.path} is damaged (at {wrong[0]}): delete it")
            shard.file.release()
    return tuple(problems)


def _is_right(shard: Shard, offset: int, height: int, width: int, checksum: int) -> bool:
    try:
        return zlib.crc32(shard.file.pixels(offset, height, width).data) == checksum
    except (OSError, ValueError):
        return False


def _pictures(dataset: DomainDataset) -> dict[str, tuple[str, int]]:
    """key → (domain, index), the domains in turn: where not all pictures fit, every domain gets its part."""
    by_domain = [[(domain, i) for i in range(dataset.size(domain))] for domain in dataset.domains]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_domain))
    return {dataset.key(*place): place for place in turns if place is not None}


def _built(
    directory: Path,
    root: Path,
    places: dict[str, tuple[str, int]],
    dataset: DomainDataset,
    budget: Budget,
    say: Say,
    progress: Progress | None,
) -> tuple[Path, Contents] | None:
    """Where the cache is and what it holds after a build; None where none can be made."""
    say(f"decoding pictures once, into {directory} (--cache off: at every use)")
    keys = list(places)
    try:
        reason = build(
            directory,
            root,
            keys,
            lambda key: dataset.image(*places[key]),
            budget,
            progress=progress,
            waiting=lambda: say("waiting for another process that is decoding them"),
        )
    except OSError as error:
        say(f"{directory} cannot be written ({error.strerror or error})")
        last = cache_places(root)[-1]
        return None if directory == last else _built(last, root, places, dataset, budget, say, progress)
    held = contents(directory)
    if reason:
        there = len(keys) - len(missing(root, keys, held))
        say(f"{there} of {len(keys)} decoded pictures are kept, for {reason}; the others are decoded at every use")
    return directory, held


def _places(dataset: DomainDataset, domain: str, held: Contents) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Shard, offset, height, width and checksum of every picture of ``domain``, int64 [n, 5]; shard −1: not there."""
    root = source_root(dataset)
    assert root is not None
    numbers = {id(shard): number for number, shard in enumerate(held.shards)}
    places = np.full((dataset.size(domain), 5), -1, dtype=np.int64)
    for index in range(len(places)):
        key = dataset.key(domain, index)
        shard, entry = held.found.get(key, (None, None))
        if shard is not None and entry is not None and entry.source == identity(root / key):
            places[index] = numbers[id(shard)], *entry[2:]
    return places
