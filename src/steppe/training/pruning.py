"""Runs that were stopped as not worth finishing: ``pruned.json``, in place of a result. Light."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from steppe.errors import SteppeError
from steppe.training.files import write_json

PRUNED = "pruned.json"

Curve = list[tuple[int, float]]
"""Step and validation accuracy of each evaluation."""


class Pruned(SteppeError):
    """A run was stopped on purpose.

    Attributes:
        step: after which step.
    """

    def __init__(self, directory: Path, step: int, steps: int) -> None:
        super().__init__(f"the run in {directory} was pruned at step {step} of {steps}")
        self.step = step


def record_pruned(directory: Path, curve: Sequence[tuple[int, float]], *, steps: int, command: str) -> None:
    """Write ``pruned.json``: what the evaluations had said, of how many steps, the command and the time.

    Raises:
        OutputError: it cannot be written.
    """
    content = {
        "evaluations": [list(point) for point in curve],
        "steps": steps,
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(directory / PRUNED, content)


def read_pruned(directory: Path) -> Curve | None:
    """What the evaluations of the pruned run in ``directory`` had said; ``None`` where there is no such record.

    A record that cannot be read counts as none: the run is then trained again.
    """
    try:
        content = json.loads((directory / PRUNED).read_text(encoding="utf-8"))
        return [(int(step), float(accuracy)) for step, accuracy in content["evaluations"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_pruned(directory: Path) -> None:
    """Delete ``pruned.json``: the run is about to be trained after all."""
    with suppress(OSError):
        (directory / PRUNED).unlink(missing_ok=True)
