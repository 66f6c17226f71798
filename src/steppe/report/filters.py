"""A part of a store: ``--only dataset=emoji held-out=line,noto algorithm=disam seed=0,1 lr=5e-5``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from steppe.errors import SteppeError, unknown_name
from steppe.report.runs import Run, Runs
from steppe.report.settings import HYPER, settings_of
from steppe.training.recipes import parse as recipe

Reader = Callable[[Run], tuple[str, ...]]
"""What a run has under a key: no value, one, or those of several words."""

_KEYS: Mapping[str, Reader] = {
    "dataset": lambda run: (run.dataset,),
    "held-out": lambda run: (run.held_out,),
    "algorithm": lambda run: (run.algorithm,),
    "seed": lambda run: (str(run.seed),),
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
            there = {other for run in runs for other in read(run)}
            for value in values:
                if not any(_same(key, value, other) for other in there):
                    raise unknown_name(key, value, sorted(there))
            kept = [run for run in kept if any(_same(key, value, other) for other in read(run) for value in values)]
        if not kept:
            raise SteppeError(f"no run in {runs.root} has all of: {self}")
        part = copy(runs)  # with everything else that is known of the store
        part[:] = kept
        return part

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


def _reader(key: str, runs: Runs) -> Reader:
    """How a key is read off a run: a bare name of a hyper-parameter is that of every word that has it."""
    if key in _KEYS:
        return _KEYS[key]
    names: dict[str, None] = {}
    seen: set[str] = set()
    for run in runs:
        kind = json.dumps([list(run.config), list(run.config.get(HYPER) or {})])
        if kind not in seen:
            seen.add(kind)
            names |= dict.fromkeys(settings_of(run.config))
    wanted = {key, key.replace("-", "_"), f"{HYPER}.{key}"}
    meant = [
        name for name in names if name in wanted or (name.startswith(f"{HYPER}.") and name.rpartition(".")[2] == key)
    ]
    if not meant:
        raise unknown_name("field", key, [*_KEYS, *(name.removeprefix(f"{HYPER}.") for name in names)])

    def read(run: Run) -> tuple[str, ...]:
        settings = settings_of(run.config)
        return tuple(_text(settings[name]) for name in meant if settings.get(name) is not None)

    return read


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _same(key: str, wanted: str, found: str) -> bool:
    if wanted == found:
        return True
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
