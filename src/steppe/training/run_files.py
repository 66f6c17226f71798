"""The files of one run while it is trained: whose they are, the log, and the checkpoint to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from steppe.errors import SteppeError
from steppe.training.checkpoints import load_checkpoint, save_checkpoint
from steppe.training.files import STATE, make_directory, remove_leftovers, run_lock, write_json
from steppe.training.metrics import MetricsLog
from steppe.training.progress import Report
from steppe.training.pruning import forget_pruned, record_pruned
from steppe.training.results import DamagedResultError, Result, read_result, set_aside


class RunFiles:
    """The directory of one run. Of several processes that train it the first alone calls the methods.

    Args:
        out: the directory.
        id: the run's.
        canonical: the run's config, for ``config.json``.
        report: is told of what is wrong and can be mended.

    Attributes:
        state_path: of the checkpoint.
    """

    def __init__(self, out: Path, id: str, canonical: Mapping[str, Any], report: Report) -> None:
        self.out = out
        self.state_path = out / STATE
        self._id = id
        self._canonical = dict(canonical)
        self._report = report
        self._metrics: MetricsLog | None = None

    def take(self, held: ExitStack) -> Result | None:
        """Lock the run as long as ``held`` lasts; its result, if it is finished.

        Raises:
            OutputError: the directory cannot be written.
            RunLockedError: another process is training this run.
            SteppeError: the directory holds another run.
        """
        held.enter_context(run_lock(make_directory(self.out)))
        finished = self._finished()
        self._check_same_run()
        if finished is None:
            remove_leftovers(self.out)
        else:
            self.forget_checkpoint()
        return finished

    def load(self) -> dict[str, Any] | None:
        """The checkpoint, or ``None`` where there is none.

        Raises:
            CorruptCheckpointError: it cannot be trusted.
        """
        return load_checkpoint(self.state_path, run=self._id, metrics=self._metrics_path)

    def open(self, opened: ExitStack, length: int) -> None:
        """Begin: the config, and the log after so many bytes, which is open as long as ``opened`` lasts."""
        forget_pruned(self.out)
        write_json(self.out / "config.json", self._canonical)
        self._metrics = opened.enter_context(MetricsLog(self._metrics_path, length))

    def write(self, line: dict[str, Any]) -> None:
        """A line of the log."""
        self._log.write(line)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the checkpoint, which says how far the log reached."""
        save_checkpoint(self.state_path, {"id": self._id, "metrics_bytes": self._log.sync(), **state})

    def prune(self, seen: Sequence[tuple[int, float]], *, steps: int, command: str) -> None:
        """Record that the run was stopped as not worth finishing; see :func:`record_pruned`."""
        record_pruned(self.out, list(seen), steps=steps, command=command)
        self.forget_checkpoint()

    def forget_checkpoint(self) -> None:
        """Remove the checkpoint of a run that will not go on."""
        self.state_path.unlink(missing_ok=True)

    @property
    def _metrics_path(self) -> Path:
        return self.out / "metrics.jsonl"

    @property
    def _log(self) -> MetricsLog:
        assert self._metrics is not None, "the files are open"
        return self._metrics

    def _finished(self) -> Result | None:
        try:
            return read_result(self.out)
        except DamagedResultError as error:
            what = str(error).partition(";")[0]
            kept = set_aside(self.out).name
            self._report.say(f"warning: {what}; it is kept as {kept}, and the run is trained again")
            return None

    def _check_same_run(self) -> None:
        path = self.out / "config.json"
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SteppeError(f"cannot read {path} ({error}); delete {self.out} to train the run again") from error
        if found != self._canonical:
            names = sorted(found.keys() | self._canonical.keys())
            differ = ", ".join(name for name in names if found.get(name) != self._canonical.get(name))
            raise SteppeError(f"{self.out} holds another run (it differs in {differ}): choose another directory")
