"""The store of runs: plain files below one directory, found again by the hash of their config."""

from __future__ import annotations

import json
import re
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from steppe.errors import SteppeError
from steppe.training.config import config_id
from steppe.training.files import is_locked, make_directory, write_json
from steppe.training.pruning import PRUNED
from steppe.training.results import DamagedResultError, NewerResultError, read_result

FAILURE = "failure.json"

Status = Literal["finished", "running", "failed", "pruned", "partial", "new", "damaged", "newer"]


@dataclass(frozen=True)
class Store:
    """``root/<dataset>/<algorithm>/<held-out domain>/<id>/``, a directory for each run.

    Attributes:
        root: the directory, which need not exist yet.
    """

    root: Path

    def directory(self, config: dict[str, Any]) -> Path:
        """Where the run with this canonical config lies."""
        return self.root.joinpath(config["dataset"], config["algorithm"], config["held_out"], config_id(config))

    def create(self) -> None:
        """Make the root directory.

        Raises:
            OutputError: it cannot be made.
            SteppeError: it is the address of an object store.
        """
        if re.match(r"[a-z][a-z0-9+.]+:/", str(self.root)):
            raise SteppeError(
                f"the store of runs is a folder, as it needs locks and renames, got {self.root}: where nodes share no "
                "disk, runs travel through an object store with --executor ray --exchange s3://..."
            )
        make_directory(self.root)


def status(directory: Path) -> Status:
    """How far the run in ``directory`` is.

    ``finished`` exactly when ``result.json`` is there, ``damaged`` when that cannot be used, ``newer`` when a later
    steppe wrote it; ``running`` while a process holds it; ``failed`` when its last attempt ended in an error;
    ``pruned`` when a search stopped it; ``partial`` when an attempt was interrupted.
    """
    try:
        if read_result(directory) is not None:
            return "finished"
    except DamagedResultError:
        return "damaged"
    except NewerResultError:
        return "newer"
    if is_locked(directory):
        return "running"
    if (directory / FAILURE).exists():
        return "failed"
    if (directory / PRUNED).exists():
        return "pruned"
    return "partial" if (directory / "config.json").exists() else "new"


def record_failure(directory: Path, error: Exception, command: str) -> Path:
    """Write ``failure.json``: the error, its traceback, the command and the time.

    Raises:
        OutputError: it cannot be written.
    """
    path = make_directory(directory) / FAILURE
    content = {
        "error": str(error) or type(error).__name__,
        "type": type(error).__name__,
        "traceback": "".join(traceback.format_exception(error)),
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(path, content)
    return path


def recorded_error(directory: Path) -> str:
    """What the ``failure.json`` of a run says went wrong."""
    path = directory / FAILURE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"see {path}"


def forget_failure(directory: Path) -> None:
    """Delete ``failure.json``: the run is about to be tried again."""
    with suppress(OSError):
        (directory / FAILURE).unlink(missing_ok=True)
