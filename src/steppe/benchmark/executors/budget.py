"""How many runs the cores and the memory of this machine carry at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from steppe.errors import SteppeError

MARGIN = 1.25
"""What a run is reckoned to need, as a multiple of the most that one was seen to hold: evaluation and averages of the
weights come later than the first steps."""

_UNITS = {"": 1, "k": 1, "m": 2, "g": 3, "t": 4}
_CGROUP = Path("/sys/fs/cgroup")


def parse_memory(text: str) -> int:
    """Bytes: ``"6GB"`` is 6·10⁹, ``"6GiB"`` 6·2³⁰.

    Raises:
        SteppeError: it is no amount of memory.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise SteppeError(f"expected an amount of memory such as 6GB or 500MB, got {text!r}")
    factor = 1 if not match[2] else (1024 if match[3] else 1000) ** _UNITS[match[2]]
    return int(float(match[1]) * factor)


def spoken(count: float) -> str:
    """Bytes, as one says them: ``"6.0 GB"``."""
    return f"{count / 1e9:.1f} GB"


def cores() -> int:
    """The cores that this process may use: its CPU affinity (as taskset and SLURM set it) and its cgroup's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        if quota != "max":
            allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def total_memory() -> int:
    """Bytes that this machine, or the cgroup of this process, has."""
    return min(int(psutil.virtual_memory().total), _cgroup_limit())


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    limit, used = _cgroup_limit(), 0
    with suppress(OSError, ValueError):
        used = int((_CGROUP / "memory.current").read_text())
        for line in (_CGROUP / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":  # cached files, which the kernel gives up first
                used -= int(value)
    return max(0, min(int(psutil.virtual_memory().available), limit - used))


def held_memory(pid: int) -> int:
    """Bytes that a process and those it started hold for themselves; 0 for one that is gone.

    Pages of files that are mapped, such as libraries and a cache of pictures, are not among them: processes share them,
    and the kernel takes them back when it needs memory.
    """
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(_own_memory(member) for member in family)


def oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since the machine started; 0 where it does not say."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


class MemoryBudget:
    """Decides whether there is room for one more run.

    Args:
        per_run: bytes of a run; ``None``: as much as one was seen to hold, with a margin. Until the first has made a
            few steps nothing is known, and no second one begins.
    """

    def __init__(self, per_run: int | None) -> None:
        self._given = per_run
        self._most = 0

    def saw(self, held: int) -> None:
        """A run that is well under way holds so many bytes."""
        self._most = max(self._most, held)

    @property
    def need(self) -> int | None:
        """Bytes that a run is reckoned to need; ``None`` while that is not known."""
        if self._given is not None:
            return self._given
        return int(MARGIN * self._most) if self._most else None

    def room(self, held: int, working: Sequence[int]) -> bool:
        """Whether a run may begin.

        Args:
            held: bytes that its worker holds already.
            working: bytes that the workers hold whose runs are under way. They may still grow to what a run needs.
        """
        if not working:
            return True
        need = self.need
        if need is None:
            return False
        promised = sum(max(0, need - one) for one in working)
        return available_memory() >= promised + max(0, need - held)


def _cgroup_limit() -> int:
    with suppress(OSError, ValueError):
        return int((_CGROUP / "memory.max").read_text())
    return 1 << 62


def _own_memory(process: psutil.Process) -> int:
    try:
        return sum(
            int(line.split()[1]) * 1024
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith(("RssAnon:", "RssShmem:"))
        )
    except (OSError, ValueError):
        with suppress(psutil.Error):
            return int(process.memory_info().rss)
    return 0
