"""Reading the two small files of a finished run, and what they must be to be believed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steppe.errors import SteppeError
from steppe.training.results import NUMBER, flaw

_FRACTIONS = ("held_out_accuracy", "held_out_accuracy_all", "in_domain_accuracy", "validation_accuracy")


class UnreadableFile(SteppeError):
    """A file of a run that is missing, broken, or does not fit the others; ``path`` names it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


@dataclass(frozen=True)
class Problem:
    """Something in the store that is not as it should be, or a run that failed: where, and what is wrong."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"

    def below(self, root: Path) -> str:
        """The same with the path as seen from ``root``, for what is passed on to others."""
        return f"{Path(os.path.relpath(self.path, root)).as_posix()}: {self.message}"


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        UnreadableFile: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        # A third of the time of Path.read_text, which thousands of small files would feel.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            parts = []
            while part := os.read(descriptor, 1 << 20):
                parts.append(part)
        finally:
            os.close(descriptor)
        return b"".join(parts).decode("utf-8")
    except FileNotFoundError:
        raise UnreadableFile(path, "the file is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(path, f"cannot be read ({error})") from error


def parse(path: Path, text: str, where: str = "") -> Any:
    """What the JSON in ``text`` says.

    Raises:
        UnreadableFile: it is not valid JSON.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UnreadableFile(path, f"{where}not valid JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UnreadableFile: it cannot be read, or holds something else.
    """
    return as_object(path, read_text(path))


def as_object(path: Path, text: str) -> dict[str, Any]:
    """The JSON object that is the text of the file ``path``.

    Raises:
        UnreadableFile: the text is something else.
    """
    content = parse(path, text)
    if not isinstance(content, dict):
        raise UnreadableFile(path, "expected an object")
    return content


def check(folder: Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Raise unless the result is one, and the one of this config.

    Raises:
        UnreadableFile: says which file and what is wrong with it.
    """
    path = folder / "result.json"
    wrong = flaw(result)
    if wrong:
        raise UnreadableFile(path, wrong)
    for name in _FRACTIONS:
        if not 0.0 <= result[name] <= 1.0:
            raise UnreadableFile(path, f"{name} is {result[name]!r}, not a fraction between 0 and 1")
    if not (math.isfinite(result["seconds_per_step"]) and result["seconds_per_step"] >= 0):
        raise UnreadableFile(path, f"seconds_per_step is {result['seconds_per_step']!r}")
    for name in ("dataset", "algorithm", "held_out", "seed"):
        if config.get(name) != result[name]:
            raise UnreadableFile(path, f"{name} is {result[name]!r} but {config.get(name)!r} in config.json")
    split = result["accuracy"].get(result["held_out"])
    value = split.get(result["answer"]) if isinstance(split, dict) else None
    if not isinstance(value, NUMBER) or not math.isclose(value, result["held_out_accuracy"], abs_tol=1e-9):
        raise UnreadableFile(
            path,
            f"held_out_accuracy is not the accuracy of {result['held_out']!r} on {result['answer']!r}",
        )
