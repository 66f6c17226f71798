"""A TOML file as another view of a command's options: the same names, one a line."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from steppe.errors import SteppeError, unknown_name
from steppe.training.config import SHORTHANDS
from steppe.training.hyper import WORDS, flat, split
from steppe.training.words import Value

C = TypeVar("C")
SKIPPED = ("config",)


def defaults_from(path: Path, command: type[C]) -> C:
    """A command whose defaults are what the file says; what it leaves out keeps its own default.

    Args:
        path: the TOML file. Its keys are the names of the command's options (``batch_per_domain = 8``), wherever in
            the command they are grouped.
        command: the command's dataclass. Options without a default that the file leaves out stay required.

    Raises:
        SteppeError: the file cannot be read, is not TOML, has a key that is no option (with near matches) or is on
            the wrong side of the line ``[hyper]``, or a value of the wrong type or out of range.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise SteppeError(f"cannot read the config file {path}: {error.strerror or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SteppeError(f"the config file {path} is not TOML: {error}") from error
    named = {key.replace("-", "_"): value for key, value in values.items()}
    known = _names(command)
    for key in named:
        if key.replace("_", "-") in WORDS:
            raise SteppeError(f"{path}: hyper-parameters of {key!r} belong under a line [hyper]")
        if key not in known:
            raise SteppeError(f"{path}: {unknown_name('option', key, known)}")
    hyper = named.get("hyper")
    for key in hyper if isinstance(hyper, dict) else ():
        if key.replace("-", "_") in known and key.replace("-", "_") not in SHORTHANDS:
            raise SteppeError(f"{path}: {key} is no hyper-parameter but an option: write it above the line [hyper]")
    built: C = _build(command, named, path)
    return built


def config_path(arguments: list[str]) -> Path | None:
    """The value of ``--config`` among command-line arguments."""
    for position, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config="))
        if argument == "--config" and position + 1 < len(arguments):
            return Path(arguments[position + 1])
    return None


def _names(kind: Any) -> list[str]:
    hints = get_type_hints(kind)
    names: list[str] = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            names += _names(hints[field.name])
        elif field.name not in SKIPPED:
            names.append(field.name)
    return names


def _build(kind: Any, values: Mapping[str, Any], path: Path) -> Any:
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            given[field.name] = _build(hint, values, path)
        elif field.name in values:
            given[field.name] = _convert(values[field.name], hint, f"{path}: {field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            given[field.name] = tyro.MISSING
    try:
        return kind(**given)
    except SteppeError as error:
        raise SteppeError(f"{path}: {error}") from error


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):  # of X | None; of a Literal's alias it is the second
        (hint,) = (argument for argument in arguments if argument is not NoneType)
        return _convert(value, hint, where)
    if origin is Literal:
        if value not in arguments:
            raise SteppeError(f"{where}: must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(item, arguments[0], where) for item in items)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise SteppeError(f"{where}: expected a table such as {{ coral.weight = 0.5 }}, got {value!r}")
        named = flat(value)
        for name, one in named.items():
            try:
                split(name)
            except SteppeError as error:
                raise SteppeError(f"{where}: {error}") from error
            if not isinstance(one, Value):
                raise SteppeError(f"{where}: {name}: expected a number, text, or true or false, got {one!r}")
        return named
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise SteppeError(f"{where}: expected {_WORDS.get(hint, hint.__name__)}, got {value!r}")
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
