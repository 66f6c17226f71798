"""Writing the files of a run so that a crash at any moment leaves either the old file or the new one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from steppe.errors import SteppeError

LOCK_NAME = ".lock"
PART = ".part"
STATE = "state.pt"


class OutputError(SteppeError):
    """The output directory cannot be written: read-only, full, or not a directory. Concerns every run in it."""


class RunLockedError(SteppeError):
    """Another process is training this run."""


def output_error(path: Path, error: OSError) -> OutputError:
    """What to tell the user when the operating system refuses to write ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "no space left: free some, then give the same command again"
        if (path.parent / STATE).exists():
            advice += "; it continues from the last checkpoint"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        advice = "it is read-only: choose another directory with --out"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        advice = "something that is not a directory is in the way: choose another directory with --out"
    else:
        advice = "choose another directory with --out"
    return OutputError(f"cannot write {path} ({error.strerror or error}); {advice}")


def make_directory(path: Path) -> Path:
    """Create a directory and its parents.

    Raises:
        OutputError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
    return path


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write ``path`` through a temporary file in the same directory, synced to the disk and then renamed.

    Args:
        write: gets the open temporary file.

    Raises:
        OutputError: the file cannot be written; neither a part of it nor the temporary file stays behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain JSON atomically, indented for reading; NaN and infinity are refused (``ValueError``)."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files that a killed process left behind. Only to be called with the run locked."""
    for path in directory.glob(f".*{PART}"):
        with suppress(OSError):
            path.unlink()


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold the run in ``directory``; the operating system lets go of it when the process ends, however it ends.

    Raises:
        RunLockedError: another process holds it.
        OutputError: the directory cannot be written.
    """
    path = make_directory(directory) / LOCK_NAME
    try:
        file = path.open("a")
    except OSError as error:
        raise output_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(f"another process is training the run in {directory}") from None
        except OSError as error:
            raise output_error(path, error) from error
        yield


def is_locked(directory: Path) -> bool:
    """Whether some process holds the run in ``directory`` now."""
    try:
        with (directory / LOCK_NAME).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such run, or nothing can be done with it
        return False
    return False


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
