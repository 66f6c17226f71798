"""A part of a store: ``--only dataset=emoji held-out=line,noto algorithm=disam seed=0,1 lr=5e-5``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steppe.errors import SteppeError, unknown_name
from steppe.report.runs import Run, Runs
from steppe.report.settings import HYPER, settings_of
from steppe.training.recipes import parse as recipe

_KEYS: Mapping[str, Callable[[Run], str]] = {
    "dataset": lambda run: run.dataset,
    "held-out": lambda run: run.held_out,
    "algorithm": lambda run: run.algorithm,
    "seed": lambda run: str(run.seed),
}


@dataclass(frozen=True)
class Only:
    """What is kept: key -> the values of which a run must have one. Several keys must all hold."""

    wanted: Mapping[str, tuple[str, ...]]

    def of(self, runs: Runs) -> Runs:
        """The runs that are kept; what else lies in the store is still told.

        Raises:
            SteppeError: a key is no field of any run, or no run has one of the values (with near matches).
        """
        if not self.wanted or not runs:
            return runs
        kept = list(runs)
        for key, values in self.wanted.items():
            read = _reader(key, runs)
            there = {read(run) for run in runs} - {None}
            for value in values:
                if not any(_same(key, value, other) for other in there):
                    raise unknown_name(key, value, sorted(str(other) for other in there))
            kept = [run for run in kept if any(_same(key, value, read(run)) for value in values)]
        if not kept:
            raise SteppeError(f"no run in {runs.root} has all of: {self}")
        return Runs(kept, root=runs.root, unfinished=runs.unfinished, failures=runs.failures, problems=runs.problems)

    def __str__(self) -> str:
        return " ".join(f"{key}={','.join(values)}" for key, values in self.wanted.items())


def only(words: Sequence[str]) -> Only:
    """From ``["held-out=line,noto", "seed=0"]``; a key that is given twice may have any of its values.

    Raises:
        SteppeError: a word is not KEY=VALUE.
    """
    wanted: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, equals, given = word.partition("=")
        values = tuple(value for value in given.split(",") if value)
        if not (key and equals and values):
            raise SteppeError(f"--only takes KEY=VALUE[,VALUE...], such as held-out=line,noto; got {word!r}")
        name = key.replace("_", "-") if key.replace("_", "-") in _KEYS else key
        wanted[name] = wanted.get(name, ()) + values
    return Only(wanted)


def _reader(key: str, runs: Runs) -> Callable[[Run], str | None]:
    if key in _KEYS:
        return _KEYS[key]
    names: dict[str, None] = {}
    seen: set[str] = set()
    for run in runs:
        kind = json.dumps(sorted(run.config), default=str) + json.dumps(sorted(run.config.get(HYPER) or {}))
        if kind not in seen:
            seen.add(kind)
            names |= dict.fromkeys(settings_of(run.config))
    for name in (key, key.replace("-", "_"), f"{HYPER}.{key}"):
        if name in names:
            return lambda run, name=name: _text(settings_of(run.config).get(name))  # type: ignore[misc]
    ends = [name for name in names if name.startswith(f"{HYPER}.") and name.rpartition(".")[2] == key]
    if len(ends) == 1:
        return lambda run: _text(settings_of(run.config).get(ends[0]))
    if ends:
        shown = ", ".join(name.removeprefix(f"{HYPER}.") for name in ends)
        raise SteppeError(f"{key} is not clear: it may be {shown}")
    raise unknown_name("field", key, [*_KEYS, *(name.removeprefix(f"{HYPER}.") for name in names)])


def _text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def _same(key: str, wanted: str, found: str | None) -> bool:
    if found is None or wanted == found:
        return wanted == found
    if key == "algorithm":
        return _canonical(wanted) == found
    try:
        return float(wanted) == float(found)  # 5e-5 and 5e-05
    except ValueError:
        return False


def _canonical(algorithm: str) -> str:
    """``sagm+disam`` is ``disam+sagm``; what is no algorithm stays what it is."""
    try:
        return recipe(algorithm).name
    except SteppeError:
        return algorithm
