"""Where a cache of decoded pictures lies, and how large it may be."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steppe.data.cache import cache_directory
from steppe.data.decoded_build import GB, LOCK, Budget, Contents, contents, missing
from steppe.data.domains import DomainDataset

MOST_GB = 64
"""Of disk, unless told otherwise."""


@dataclass(frozen=True)
class CacheOptions:
    """Whether decoded pictures are kept, and how much of the machine they may take.

    Attributes:
        use: ``"auto"``: where pictures are large (49 kB decoded, on average) and all of them fit; ``"on"``: as many as
            fit; ``"off"``.
        disk_gb: gigabytes (10⁹ bytes) of disk for one data set; by default half of what is free, at most 64. A
            twentieth of the disk, at most 10 GB, stays free in any case.
        memory_gb: gigabytes of memory that they may fill, where the operating system keeps what has been read. By
            default half of the memory for ``"auto"``, because a larger cache is read from the disk again and again,
            which on a slow one takes longer than decoding; with ``"on"`` as much as there is.
    """

    use: Literal["auto", "on", "off"] = "auto"
    disk_gb: float | None = None
    memory_gb: float | None = None


def source_root(dataset: DomainDataset) -> Path | None:
    """The folder in which the picture ``key`` is the file ``root/key``; None where pictures are no such files."""
    root = getattr(dataset, "root", None)
    if not isinstance(root, Path):
        return None
    first = (root / dataset.key(domain, 0) for domain in dataset.domains)
    return root if all(path.is_file() for path in first) else None


def cache_places(root: Path) -> tuple[Path, ...]:
    """Where decoded pictures of ``root`` are looked for: beside it (on the same disk), in steppe's cache directory.

    Not in ``root`` itself: DomainBed would take the folder for a domain.
    """
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    own = cache_directory() / "decoded" / name
    same_disk = root.stat().st_dev == root.parent.stat().st_dev
    return (root.parent / f".{root.name}.steppe-cache", own) if same_disk else (own,)


def best_place(root: Path, keys: list[str]) -> tuple[Path, Contents]:
    """The place that has all pictures; else the first that can be written."""
    places = [(directory, contents(directory)) for directory in cache_places(root)]
    for directory, held in places:
        if held.found and not missing(root, keys, held):
            return directory, held
    return next((place for place in places if _writable(place[0])), places[0])


def _writable(directory: Path) -> bool:
    if os.access(directory / LOCK, os.F_OK):
        return os.access(directory, os.W_OK | os.X_OK) and os.access(directory / LOCK, os.W_OK)
    existing = _existing(directory)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _existing(path: Path) -> Path:
    """``path``, or the closest folder above it that is there."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def budget_for(directory: Path, held: Contents, options: CacheOptions) -> Budget:
    """What the options allow the cache in ``directory``."""
    own = sum(shard.size for shard in held.shards)
    half = (own + room(Budget(0, spare=0), directory)) // 2
    disk = min(MOST_GB * GB, half) if options.disk_gb is None else int(options.disk_gb * GB)
    return Budget(disk if options.memory_gb is None else min(disk, int(options.memory_gb * GB)))


def room(budget: Budget, directory: Path) -> int:
    """Bytes that may be written to the disk on which ``directory`` is, or would be made."""
    try:
        return budget.room(_existing(directory))
    except OSError:
        return 0


def obstacle(directory: Path, budget: Budget, options: CacheOptions, total: float, more: float) -> str:
    """Why not all pictures fit, ``total`` bytes, of which ``more`` are still to be written; empty where they do."""
    size, memory = f"they would take {total / GB:.3g} GB", total_memory() // 2
    if total > budget.disk:
        return f"{size}, more than the {budget.disk / GB:.3g} GB they may (--cache-gb, --cache-memory-gb)"
    if options.memory_gb is None and total > memory:
        return f"{size}, more than half of the memory (--cache on does it all the same)"
    if more > room(budget, directory):
        return f"{size}, and the disk of {directory.parent} is nearly full"
    return ""


def total_memory() -> int:
    """Bytes of memory that this process could have: the machine's, or its control group's where that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return total
