"""The store of runs as the report sees it: finished runs, counts of the others, and what could not be read.

A run is a folder with ``config.json``; it is finished exactly when ``result.json`` is there. Only these two small
files are read here, through a cache where there are many (:mod:`steppe.report.index`), so that a store of thousands of
runs opens in seconds; the rest is read when asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steppe.errors import SteppeError
from steppe.report.index import Index
from steppe.report.reading import Problem as Problem
from steppe.report.reading import UnreadableFile as UnreadableFile
from steppe.report.reading import parse, read_object, read_text
from steppe.training.pruning import PRUNED

SEED_FIELDS = ("seed", "trial_seed")
"""The fields of a config that say which repetition a run is; runs that differ in nothing else are averaged.
"""


@dataclass(frozen=True)
class Searched:
    """How runs of a sweep were chosen among draws of hyper-parameters.

    Attributes:
        sweep: the plan's id.
        search: among what, in words; empty where only the checkpoint was chosen.
        selection: by which rule, in words.
        drawn: the settings that were searched; they differ from run to run.
    """

    sweep: str
    search: str
    selection: str
    drawn: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it in words."""
        return f"{f'best of {self.search}' if self.search else 'checkpoint'} by {self.selection}"


@dataclass(frozen=True)
class Run:
    """One finished run. Accuracies are fractions in [0, 1] of the selected checkpoint.

    Attributes:
        searched: how this run was chosen, where it was; such runs are one method, whatever was drawn for each.
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    result: Mapping[str, Any] = field(repr=False)
    searched: Searched | None = None

    @property
    def id(self) -> str:
        return str(self.result["id"])

    @property
    def dataset(self) -> str:
        return str(self.result["dataset"])

    @property
    def algorithm(self) -> str:
        return str(self.result["algorithm"])

    @property
    def held_out(self) -> str:
        return str(self.result["held_out"])

    @property
    def validation_domain(self) -> str | None:
        """The second domain that was held out, of a run that serves cross-validation over domains."""
        found = self.config.get("validation_domain")
        return None if found is None else str(found)

    @property
    def seed(self) -> int:
        return int(self.result["seed"])

    @property
    def repetition(self) -> tuple[Any, ...]:
        """All the seeds of the run: what pairs it with the runs of other methods."""
        return tuple(self.config.get(name) for name in SEED_FIELDS)

    @property
    def held_out_accuracy(self) -> float:
        """On the held-out domain's split that answers the question (``answer``)."""
        return float(self.result["held_out_accuracy"])

    @property
    def held_out_accuracy_all(self) -> float:
        """On every picture of the held-out domain: the number that DomainBed would report."""
        return float(self.result["held_out_accuracy_all"])

    @property
    def in_domain_accuracy(self) -> float:
        """Mean over the source domains, on pictures that were not trained on (split ``in_domain``).

        Under the split ``domainbed`` they are the pictures that selected the checkpoint.
        """
        return float(self.result["in_domain_accuracy"])

    @property
    def seconds_per_step(self) -> float:
        return float(self.result["seconds_per_step"])

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.result["accuracy"])

    @property
    def hardware(self) -> tuple[str, str]:
        """Device and number of threads: seconds are comparable only where both are the same."""
        return str(self.result.get("device", "unknown")), str(self.result.get("threads", "unknown"))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, in order.

        Raises:
            UnreadableFile: the file cannot be read, or a line is not JSON (the message has path and line).
        """
        path = self.path / "metrics.jsonl"
        lines = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if line.strip():
                record = parse(path, line, f"line {number}: ")
                if not isinstance(record, dict):
                    raise UnreadableFile(path, f"line {number}: expected an object")
                lines.append(record)
        return lines

    def predictions(self) -> dict[str, list[dict[str, Any]]]:
        """Domain -> its predictions by the selected checkpoint.

        A prediction has ``key``, ``index``, ``label``, ``predicted`` and ``confidence``.

        Raises:
            UnreadableFile: the file cannot be read or is not JSON.
        """
        path = self.path / "predictions.json"
        content = parse(path, read_text(path))
        if not isinstance(content, dict):
            raise UnreadableFile(path, "expected an object with a list for each domain")
        return content


class Runs(list[Run]):
    """The finished runs of a store, and honest counts of what else lies there.

    Attributes:
        root: the folder that was searched.
        unfinished: folders of runs that were begun and neither finished nor failed.
        failures: runs that stopped with an error and have not been finished since.
        pruned: folders of runs that a search stopped as not worth finishing.
        problems: files that could not be read or do not fit together; their runs are in none of the lists.
        notes: what has to be said of how runs were chosen, a sentence each.
    """

    def __init__(
        self,
        runs: Iterable[Run] = (),
        *,
        root: Path | None = None,
        unfinished: Iterable[Path] = (),
        failures: Iterable[Problem] = (),
        problems: Iterable[Problem] = (),
        pruned: Iterable[Path] = (),
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(runs)
        self.root = root
        self.unfinished = list(unfinished)
        self.failures = list(failures)
        self.problems = list(problems)
        self.pruned = list(pruned)
        self.notes = list(notes)


def load_runs(root: Path | str) -> Runs:
    """Every finished run below ``root``, in the order of their paths.

    A file that cannot be read is not passed over in silence: it is listed, with its path, in ``problems``.

    Raises:
        SteppeError: ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise SteppeError(f"no folder of runs at {root}: give the folder that `steppe bench` or `steppe demo` wrote to")
    found = Runs(root=root)
    seen: dict[str, Path] = {}
    index = Index(root)
    finished = []
    for folder, names in _run_folders(root):
        try:
            if "result.json" in names:
                finished.append(folder)
            elif "failure.json" in names:
                found.failures.append(_load_failure(folder))
            elif PRUNED in names:
                found.pruned.append(folder)
            else:
                found.unfinished.append(folder)
        except UnreadableFile as error:
            found.problems.append(Problem(error.path, error.message))
    for folder, loaded in zip(finished, index.load(finished), strict=True):
        if isinstance(loaded, UnreadableFile):
            found.problems.append(Problem(loaded.path, loaded.message))
            continue
        run = Run(folder, *loaded)
        if run.id in seen:
            found.problems.append(Problem(folder, f"the same run as {seen[run.id]}; counted once"))
            continue
        seen[run.id] = folder
        found.append(run)
    index.save()
    return found


def _run_folders(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """The folders that hold a run, in the order of their paths; what lies below one is the run's own."""
    for folder, subfolders, files in os.walk(root):
        names = set(files)
        if names & {"config.json", "result.json", "failure.json", PRUNED}:
            subfolders.clear()
            yield Path(folder), names
        subfolders.sort()


def _load_failure(folder: Path) -> Problem:
    path = folder / "failure.json"
    return Problem(folder, str(read_object(path).get("error", "no error was recorded")))
