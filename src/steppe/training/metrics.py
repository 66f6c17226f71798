"""``metrics.jsonl``: one JSON object a line, appended as training goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from steppe.training.files import output_error


class MetricsLog:
    """The open metrics file of a run.

    What a killed process wrote after its last checkpoint is cut off on opening, so the steps that are trained again
    do not appear twice.

    Args:
        path: the file.
        length: its length in bytes at the checkpoint that training continues from; 0 starts a new file.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        try:
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(length)
            self._file.seek(length)
        except OSError as error:
            raise output_error(path, error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Append one line.

        Raises:
            OutputError: the file cannot be written.
            ValueError: a number is NaN or infinite.
        """
        line = json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise output_error(self.path, error) from error

    def sync(self) -> int:
        """Bring what was written to the disk and return the file's length in bytes, for the checkpoint to remember."""
        try:
            os.fsync(self._file.fileno())
            return self._file.tell()
        except OSError as error:
            raise output_error(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:
            # A full disk is reported where it was met; closing must not hide that error behind its own.
            if error is None:
                raise output_error(self.path, failure) from failure
