"""Runs that travel through an object store, for nodes that share no disk.

The store of runs stays where the driver is: plain files, which its lock belongs to. A worker trains in a scratch
directory of its own; after each checkpoint, and at the end, the files of the run go as one archive to the object store
(anything fsspec has an address for), from where the driver, or the next worker of the run, takes the newest.

Object stores have neither rename nor lock, and none is needed. An archive's name has its SHA-256: one that was cut off
on its way does not match its name and is passed over. Names are never reused, so nobody reads what another is writing.
Two workers on one run, one of them given up for lost, do no harm either: a run is a function of its config, and any
checkpoint of it is a good one.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from steppe.benchmark.executors.bench import WorkBench
from steppe.benchmark.executors.events import Ended, Refused, Stopped
from steppe.benchmark.protocol import Job
from steppe.errors import SteppeError
from steppe.training.files import STATE, make_directory, write_atomically
from steppe.training.progress import Report
from steppe.training.results import RESULT

LOOK_SECONDS = 1.0
"""How often a worker looks whether its run has a new checkpoint."""

METRICS = "metrics.jsonl"


class Archive(NamedTuple):
    """The files of a run at one moment; later ones are larger.

    Attributes:
        finished: 1 with a result in it, otherwise 0.
        lines: of the metrics file, which grows as the run goes on.
        number: of archives of this run so far.
        digest: SHA-256 of the archive.
    """

    finished: int
    lines: int
    number: int
    digest: str

    @property
    def name(self) -> str:
        """The last part of its address."""
        return f"{self.finished}-{self.lines}-{self.number}-{self.digest}.tar"

    @property
    def progress(self) -> tuple[int, int]:
        """How far the run is in it."""
        return self.finished, self.lines

    @classmethod
    def named(cls, name: str) -> Archive | None:
        """The archive of this name; ``None`` for a file that is none."""
        *counts, digest = name.removesuffix(".tar").split("-")
        if not name.endswith(".tar") or len(counts) != 3 or not all(map(str.isdecimal, counts)):
            return None
        finished, lines, number = map(int, counts)
        return cls(finished, lines, number, digest)


class Exchange:
    """Archives of runs below an address such as ``s3://bucket/sweep`` or ``file:///mnt/scratch``.

    Raises:
        SteppeError: no installed package knows this kind of address, or (from every method) it cannot be reached.
    """

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address
        try:
            self._files, self._root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise SteppeError(f"cannot use the address {address}: {error}") from error

    def check(self) -> None:
        """Write a small file and delete it."""
        with self._reached():
            self._files.makedirs(self._root, exist_ok=True)
            path = f"{self._root}/reached-from-{platform.node()}"
            self._files.pipe_file(path, b"steppe")
            self._files.rm_file(path)

    def push(self, run: str, directory: Path, *, unless_known: bool = False) -> None:
        """Add an archive of the files in ``directory`` and delete the earlier ones.

        Args:
            run: what the run is called here.
            directory: where its files are; nothing happens where there are none.
            unless_known: not if there is an archive in which the run is as far.
        """
        found = self._archives(run)
        if unless_known and any(other.progress >= progress(directory) for other in found):
            return
        with tempfile.TemporaryDirectory(prefix="steppe-") as scratch:
            packed = Path(scratch) / "packed.tar"
            if not _pack(directory, packed):
                return
            number = 1 + max((other.number for other in found), default=0)
            archive = Archive(*_packed_progress(packed), number, _digest(packed))
            with self._reached():
                self._files.makedirs(f"{self._root}/{run}", exist_ok=True)
                self._files.put_file(str(packed), self._path(run, archive))
        for other in found:
            if other < archive:  # a worker that was given up for lost must not take away what came after it
                self._remove(run, other)

    def pull(self, run: str, directory: Path) -> None:
        """Bring ``directory`` up to the newest archive that is whole, where the run is as far in it as there."""
        here = progress(directory)
        with tempfile.TemporaryDirectory(prefix="steppe-") as scratch:
            packed = Path(scratch) / "packed.tar"
            for archive in sorted(self._archives(run), reverse=True):
                if archive.progress < here:
                    return
                try:
                    with self._reached():
                        self._files.get_file(self._path(run, archive), str(packed))
                except FileNotFoundError:  # another worker has a later one by now
                    continue
                if _digest(packed) == archive.digest:
                    _unpack(packed, directory)
                    return

    def clear(self, run: str) -> None:
        """Delete the archives of a run."""
        for archive in self._archives(run):
            self._remove(run, archive)
        with suppress(OSError, NotImplementedError):
            self._files.rmdir(f"{self._root}/{run}")  # where there are folders

    def _archives(self, run: str) -> list[Archive]:
        with self._reached():
            self._files.invalidate_cache()
            try:
                listed = self._files.ls(f"{self._root}/{run}", detail=False)
            except FileNotFoundError:
                return []
        return [found for path in listed if (found := Archive.named(str(path).rpartition("/")[2])) is not None]

    def _remove(self, run: str, archive: Archive) -> None:
        with suppress(FileNotFoundError), self._reached():
            self._files.rm_file(self._path(run, archive))

    def _path(self, run: str, archive: Archive) -> str:
        return f"{self._root}/{run}/{archive.name}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """The libraries behind fsspec have errors of their own, all of which mean the same here."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise SteppeError(
                f"the exchange {self.address} cannot be used from {platform.node()} ({type(error).__name__}: {error})"
            ) from error


def exchange_name(directory: Path) -> str:
    """What the run in this directory is called in an exchange; that of another store has another name."""
    place = f"{platform.node()}:{directory.absolute()}"
    return f"{directory.name}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


def work_through(
    exchange: Exchange, name: str, job: Job, bench: WorkBench, report: Report
) -> Ended | Stopped | Refused:
    """Do a run in a scratch directory: take up what others left of it, and hand over each checkpoint and the end."""
    scratch = Path(tempfile.mkdtemp(prefix="steppe-"))
    try:
        directory = make_directory(scratch / job.directory.name)
        exchange.pull(name, directory)
        with _handing_over(exchange, name, directory, report):
            event = bench.work(replace(job, directory=directory), report)
        exchange.push(name, directory)
        return event
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _handing_over(exchange: Exchange, name: str, directory: Path, report: Report) -> Iterator[None]:
    """Hand over every new checkpoint while the run goes on; it does not wait for that."""
    over = threading.Event()

    def watch() -> None:
        last = _stamp(directory)
        while not over.wait(LOOK_SECONDS):
            stamp = _stamp(directory)
            if stamp is not None and stamp != last:
                try:
                    exchange.push(name, directory)
                    last = stamp
                except (SteppeError, OSError) as error:  # the end of the run must get through, a checkpoint need not
                    report.say(f"warning: a checkpoint was not handed over: {error}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _stamp(directory: Path) -> int | None:
    try:
        return (directory / STATE).stat().st_mtime_ns
    except OSError:
        return None


def progress(directory: Path) -> tuple[int, int]:
    """How far the run in ``directory`` is: whether it has a result, and the lines of its metrics."""
    try:
        lines = (directory / METRICS).read_bytes().count(b"\n")
    except OSError:
        lines = 0
    return int((directory / RESULT).exists()), lines


def _pack(directory: Path, packed: Path) -> bool:
    """Archive the run, its checkpoint before its metrics, which then reach at least as far; whether there was any."""
    files = sorted(
        (path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")),
        key=lambda path: path.name != STATE,
    )
    if directory / RESULT in files:
        files = [path for path in files if path.name != STATE]  # it is about to be deleted
    with tarfile.open(packed, "w") as archive:
        for path in files:
            with suppress(FileNotFoundError), path.open("rb") as file:
                archive.addfile(archive.gettarinfo(arcname=path.name, fileobj=file), file)
    return bool(files)


def _packed_progress(packed: Path) -> tuple[int, int]:
    with tarfile.open(packed) as archive:
        names = archive.getnames()
        metrics = archive.extractfile(METRICS) if METRICS in names else None
        return int(RESULT in names), metrics.read().count(b"\n") if metrics is not None else 0


def _unpack(packed: Path, directory: Path) -> None:
    """Replace the run in ``directory`` so that a crash at any moment leaves no checkpoint beside another's metrics."""
    make_directory(directory)
    with tarfile.open(packed) as archive:
        members = {member.name: member for member in archive.getmembers() if member.isfile()}
        (directory / STATE).unlink(missing_ok=True)
        for name in sorted(members, key=lambda name: (name == RESULT, name == STATE, name)):
            file = archive.extractfile(members[name])
            assert file is not None
            with file:
                write_atomically(directory / Path(name).name, partial(shutil.copyfileobj, file))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
