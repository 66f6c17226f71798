"""``result.json``: what a finished run found. Light: reading it needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steppe.errors import SteppeError

RESULT = "result.json"
VERSION = 1

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


class DamagedResultError(SteppeError):
    """A ``result.json`` that is there but says nothing usable."""


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


def read_result(directory: Path) -> Result | None:
    """The result of the run in ``directory``, or ``None`` if it is not finished.

    Raises:
        DamagedResultError: the file is there but cannot be read, or is no result.
    """
    path = directory / RESULT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedResultError(f"cannot read {path} ({error}); delete it to train the run again") from error
    wrong = flaw(content)
    if wrong:
        raise DamagedResultError(f"{path} is damaged ({wrong}); delete it to train the run again")
    return Result(directory, content)


def flaw(content: Any) -> str | None:
    """What keeps the content of a ``result.json`` from being one: its shape, its version or a field; or ``None``."""
    if not isinstance(content, dict):
        return "expected an object"
    if content.get("version") != VERSION:
        return f"version {content.get('version')!r}; this steppe reads version {VERSION}"
    for name, kind in FIELDS.items():
        value = content.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"field {name!r} is missing or of the wrong type ({value!r})"
    return None
