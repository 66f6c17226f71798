"""``result.json``: what a finished run found. Light: reading it needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steppe.errors import SteppeError

RESULT = "result.json"
SET_ASIDE = "result.json.damaged"
VERSION = 2
READABLE = (1, 2)
"""Version 1 has no table of checkpoints; everything else is the same."""

NUMBER = (int, float)
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "id": str,
    "dataset": str,
    "algorithm": str,
    "held_out": str,
    "answer": str,
    "in_domain": str,
    "seed": int,
    "selected_step": int,
    "accuracy": dict,
    "counts": dict,
    "held_out_accuracy": NUMBER,
    "held_out_accuracy_all": NUMBER,
    "in_domain_accuracy": NUMBER,
    "validation_accuracy": NUMBER,
    "seconds_per_step": NUMBER,
}
"""What every result has; there is more in it that nothing depends on."""

CHECKPOINT_FIELDS = (
    "step",
    "validation_accuracy",
    "validation_loss",
    "held_out_accuracy",
    "held_out_accuracy_all",
    "held_out_validation_accuracy",
    "in_domain_accuracy",
)
"""What every row of the table of checkpoints has, all numbers."""


class DamagedResultError(SteppeError):
    """A ``result.json`` that is there but says nothing usable."""


class NewerResultError(SteppeError):
    """A ``result.json`` that a later steppe wrote."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        path: its directory.
        content: its ``result.json``. Accuracies are fractions in [0, 1] of the selected checkpoint.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def held_out_accuracy(self) -> float:
        """On the domain that was never seen: the number."""
        return float(self.content["held_out_accuracy"])

    @property
    def in_domain_accuracy(self) -> float:
        """Mean over the source domains, on pictures that were not trained on.

        Under the split ``domainbed`` they are the pictures that selected the checkpoint, so it is slightly optimistic;
        under ``strict`` they had no part in that either.
        """
        return float(self.content["in_domain_accuracy"])

    @property
    def selected_step(self) -> int:
        """The step of the selected checkpoint."""
        return int(self.content["selected_step"])

    @property
    def checkpoints(self) -> list[dict[str, Any]] | None:
        """A row for each evaluation (:data:`CHECKPOINT_FIELDS`), in order.

        A run whose model is made at its end (an average of weights, or re-estimated batch normalisation) has one row,
        at its last step. ``None``: the result is of version 1, which had no such table.
        """
        return self.content.get("checkpoints")


def read_result(directory: Path) -> Result | None:
    """The result of the run in ``directory``, or ``None`` if it is not finished.

    Raises:
        DamagedResultError: the file is there but cannot be read, or is no result.
        NewerResultError: a later steppe wrote it.
    """
    path = directory / RESULT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedResultError(f"cannot read {path} ({error}); delete it to train the run again") from error
    wrong = flaw(content)
    if wrong and is_newer(content):
        raise NewerResultError(f"{path} cannot be used ({wrong}): a later steppe wrote it, which is needed to read it")
    if wrong:
        raise DamagedResultError(f"{path} is damaged ({wrong}); delete it to train the run again")
    return Result(directory, content)


def set_aside(directory: Path) -> Path:
    """Rename a damaged ``result.json``, so that the run is no longer finished, and return the new path.

    Only to be called with the run locked.
    """
    path = directory / SET_ASIDE
    with suppress(FileNotFoundError):
        (directory / RESULT).replace(path)
    return path


def is_newer(content: Any) -> bool:
    """Whether the content of a ``result.json`` names a version that this steppe does not know yet."""
    version = content.get("version") if isinstance(content, dict) else None
    return isinstance(version, int) and not isinstance(version, bool) and version > VERSION


def flaw(content: Any) -> str | None:
    """What keeps the content of a ``result.json`` from being one: its shape, its version or a field; or ``None``."""
    if not isinstance(content, dict):
        return "expected an object"
    version = content.get("version")
    if version not in READABLE or isinstance(version, bool):
        return f"version {version!r}; this steppe reads versions {' and '.join(map(str, READABLE))}"
    for name, kind in FIELDS.items():
        value = content.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"field {name!r} is missing or of the wrong type ({value!r})"
    return None if version == 1 else _flaw_of_checkpoints(content.get("checkpoints"))


def _flaw_of_checkpoints(rows: Any) -> str | None:
    if not isinstance(rows, list) or not rows:
        return "field 'checkpoints' is missing or empty"
    last = 0
    for number, row in enumerate(rows, start=1):
        for name in CHECKPOINT_FIELDS:
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, NUMBER) or isinstance(value, bool):
                return f"row {number} of the checkpoints has no number {name!r} ({value!r})"
            if name.endswith("accuracy") and not 0 <= value <= 1:
                return f"row {number} of the checkpoints has {name} {value!r}, not a fraction between 0 and 1"
        if not row["step"] > last:
            return f"row {number} of the checkpoints does not come after the one before it (step {row['step']!r})"
        last = row["step"]
    return None
