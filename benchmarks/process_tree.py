"""A command as a process with all its children: how long it takes, and how much memory all of them have together.

On Linux, whose /proc says what each process has.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL, SHARE = 0.2, 0.02
"""Seconds between two looks at the memory at least, and the most that looking may take of one core."""
POLL = 0.05
"""Seconds between two looks at whether it goes on: the times below are as exact as that."""
TAIL = 4000
"""Characters of a failed command's output that are shown."""


@dataclass(frozen=True)
class Held:
    """Memory of several processes in bytes, what they share counted once.

    Attributes:
        own: what cannot be dropped: anonymous pages, and shared memory, also where no process maps it at the moment
            (a batch on its way from a loader).
        files: mapped pages of files besides, which the system takes back when it needs them.
    """

    own: int
    files: int


@dataclass(frozen=True)
class Finished:
    """What a command took.

    Attributes:
        seconds: wall clock, from before the process is made until it has ended.
        own, files: the peak of each, of :class:`Held`. The looks are ``INTERVAL`` apart, of a hundred processes many
            seconds, and what is between two of them is missed.
        machine: how much less memory was available on the machine at the worst moment than before, in bytes, looked
            at every ``POLL`` seconds: complete, but true only where nothing else goes on.
        processes: the most there were at a time.
        marks: seconds after the start at which the number that was watched had grown, a mark for each unit.
    """

    seconds: float
    own: int
    files: int
    machine: int
    processes: int
    marks: tuple[float, ...]


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    directory: Path | None = None,
    watched: Callable[[], int] = lambda: 0,
) -> Finished:
    """Run ``command`` to its end.

    Args:
        environment: variables beside this process's.
        directory: where it is run.
        watched: a number that grows while the command runs, such as the lines of a file; 0 at first.

    Raises:
        SystemExit: it failed; with the end of what it printed.
    """
    with tempfile.TemporaryFile() as output:
        before = least = psutil.virtual_memory().available
        begin = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=directory,
            env={**os.environ, **environment},
        )
        own = files = processes = 0
        marks: list[float] = []
        due = begin
        try:
            while process.poll() is None:
                now = time.perf_counter()
                marks += [now - begin] * (watched() - len(marks))
                least = min(least, psutil.virtual_memory().available)
                if now >= due:
                    tree = descendants(process.pid)
                    held = memory(tree)
                    own, files, processes = max(own, held.own), max(files, held.files), max(processes, len(tree))
                    looked = time.perf_counter() - now
                    due = now + max(INTERVAL, looked / SHARE)
                time.sleep(POLL)
            seconds = time.perf_counter() - begin
        except BaseException:
            for number in reversed(descendants(process.pid)):
                _kill(number)
            raise
        marks += [seconds] * (watched() - len(marks))
        if process.returncode:
            output.seek(0)
            printed = output.read().decode(errors="replace")[-TAIL:]
            raise SystemExit(f"{printed}\n{' '.join(map(str, command))}\nended with {process.returncode}")
    return Finished(seconds, own, files, before - least, processes, tuple(marks))


def descendants(number: int) -> list[int]:
    """The process of that number and all that come of it, as far as they are there."""
    try:
        children = psutil.Process(number).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [number, *(child.pid for child in children)]


def memory(numbers: Sequence[int]) -> Held:
    """What these processes have together; one that has ended meanwhile has nothing."""
    totals = dict.fromkeys(("Pss_Anon", "Pss_File", "Pss_Shmem"), 0)
    segments: dict[tuple[int, int], int] = {}
    for number in numbers:
        process = Path("/proc", str(number))
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
            for line in lines:
                name, _, rest = line.partition(":")
                if name in totals:
                    totals[name] += 1024 * int(rest.split()[0])
            segments.update(_shared_memory(process / "fd"))
        except OSError:
            continue
    return Held(totals["Pss_Anon"] + max(totals["Pss_Shmem"], sum(segments.values())), totals["Pss_File"])


def _shared_memory(folder: Path) -> dict[tuple[int, int], int]:
    """Segments of shared memory that a process holds open, by device and inode -> bytes in use."""
    found = {}
    for entry in folder.iterdir():
        with suppress(OSError):  # closed meanwhile
            if str(entry.readlink()).startswith(("/dev/shm/", "/memfd:")):
                status = entry.stat()
                found[status.st_dev, status.st_ino] = 512 * status.st_blocks
    return found


def _kill(number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(number).kill()
