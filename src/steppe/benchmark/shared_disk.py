"""Whether several machines may work on one store: they must see the same files, and respect each other's locks."""

from __future__ import annotations

import fcntl
import platform
import re
import uuid
from contextlib import suppress
from pathlib import Path

from steppe.errors import SteppeError
from steppe.training.files import make_directory, output_error

MOUNTS = Path("/proc/self/mountinfo")

_LOCAL_LOCKS = {
    "nfs": {"nolock", "local_lock=flock", "local_lock=all"},
    "nfs4": {"local_lock=flock", "local_lock=all"},
    "lustre": {"localflock"},
}
"""File systems of several machines, and the mount options with which a lock holds within one of them only."""


class Probe:
    """A locked file beside the runs, by which another process sees whether it shares the disk and its locks.

    Args:
        directory: where; it is made where it is not there.

    Raises:
        OutputError: nothing can be written there.
    """

    def __init__(self, directory: Path) -> None:
        self.path = make_directory(directory).absolute() / f".driver-{uuid.uuid4().hex}"
        try:
            self._file = self.path.open("x")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            raise output_error(self.path, error) from error

    def remove(self) -> None:
        """Unlock and delete it."""
        self._file.close()
        with suppress(OSError):
            self.path.unlink()


def check_shared(probe: Path) -> None:
    """Make sure that this machine sees the file of a :class:`Probe`, and that its lock holds here.

    Raises:
        SteppeError: the disk is not shared, or its locks hold within one machine only, so that two of them could train
            the same run.
    """
    here = platform.node()
    instead = "or let runs travel through an object store: --exchange s3://..."
    try:
        file = probe.open("r")
    except OSError as error:
        raise SteppeError(
            f"{here} does not see {probe.parent} as the driver does ({error.strerror}): put the store (--out) on a "
            f"disk that all nodes mount at the same path, {instead}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError as error:
            raise SteppeError(
                f"files in {probe.parent} cannot be locked on {here} ({error.strerror}): choose another disk, {instead}"
            ) from error
    raise SteppeError(
        f"a lock that the driver holds in {probe.parent} does not hold on {here}: mount that disk with locks that hold "
        f"between machines (NFS: neither nolock nor local_lock; Lustre: flock; BeeGFS: global file locks), {instead}"
    )


def local_locks(directory: Path) -> str | None:
    """A warning, where ``directory`` is on a disk of several machines whose locks hold within one of them only.

    It goes by what the mount says of itself. BeeGFS does not say, and has such locks unless it is told otherwise.
    """
    where = directory.absolute()
    found: tuple[int, str, set[str]] | None = None
    with suppress(OSError):
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            mount, _, system = line.partition(" - ")
            fields, (kind, _, super_options) = mount.split(), system.split(" ", 2)
            point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
            if where.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
                found = len(point.parts), kind, {*fields[5].split(","), *super_options.split(",")}
    if found is None:
        return None
    _, kind, options = found
    if kind == "beegfs" or _LOCAL_LOCKS.get(kind, set()) & options:
        return (
            f"{directory} is on {kind}, mounted so that its locks may hold within one machine only: two machines could "
            "train the same run. Start sweeps on this store from one machine at a time (docs/running.md, SLURM)"
        )
    return None
