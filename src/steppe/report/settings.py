"""Which runs may be averaged: those that differ in nothing but their seed; and names for the groups that remain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steppe.report.runs import SEED_FIELDS

IDENTITY = ("dataset", "dataset_fingerprint", "algorithm", "held_out", "validation_domain", *SEED_FIELDS)
"""Fields of a config that the tables have a place for; everything else is a setting."""

HYPER = "hyper"
SEARCH, SELECTION = "search", "selection"
"""What a method has for settings where its runs were chosen in a sweep: among what, and by which rule."""

OFF = {"ascent_fraction": 1.0, "m": 1, "shared": False}
"""Options of whatever climbs, and what they are where they are not used."""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, flat: its config without the identity, hyper-parameters as ``hyper.<name>``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in IDENTITY:
            continue
        if name == HYPER and isinstance(value, Mapping):
            flat.update({f"{HYPER}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[name] = value
    return flat


def shared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that every method has: all but its own hyper-parameters."""
    return {name: value for name, value in settings.items() if not name.startswith(f"{HYPER}.")}


def settings_key(settings: Mapping[str, Any]) -> str:
    """A canonical form: equal exactly for equal settings."""
    return json.dumps(settings, sort_keys=True, default=str)


def differing(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which the groups differ (a missing one differs from any value), in order of appearance."""
    names = dict.fromkeys(name for group in groups for name in group)
    return [name for name in names if len({_comparable(group, name) for group in groups}) > 1]


def label(algorithm: str, settings: Mapping[str, Any], names: Sequence[str], digits: int | None = None) -> str:
    """``disam`` or ``disam (rho=0.1, steps=300)``: the algorithm, and the settings that tell it from its kin.

    Numbers have all their digits, or ``digits`` significant ones.
    """

    def said(value: Any) -> str:
        return f"{value:.{digits}g}" if digits is not None and isinstance(value, float) else plain(value)

    shown = [f"{short(name, settings)}={said(settings[name])}" for name in names if name in settings]
    return f"{algorithm} ({', '.join(shown)})" if shown else algorithm


def labels(algorithm: str, groups: Sequence[tuple[Mapping[str, Any], Sequence[str]]]) -> list[str]:
    """A label for each group of an algorithm's runs, all different; drawn numbers as short as that allows.

    Args:
        algorithm: of all of them.
        groups: the settings of each, and the names of those that are to be shown.
    """
    for digits in (3, 4, 6, None):
        found = [label(algorithm, settings, names, digits) for settings, names in groups]
        if len(set(found)) == len(found):
            break
    return found


def short(name: str, settings: Mapping[str, Any]) -> str:
    """A setting as a person would call it: of one word's hyper-parameters ``rho``, of a sum's ``disam.rho``."""
    if not name.startswith(f"{HYPER}."):
        return name
    full = [other.removeprefix(f"{HYPER}.") for other in settings if other.startswith(f"{HYPER}.")]
    words = {other.partition(".")[0] for other in full}
    own = name.removeprefix(f"{HYPER}.")
    return own.partition(".")[2] or own if len(words) == 1 else own


def switched_off(name: str, value: Any) -> bool:
    """Whether a hyper-parameter is an option of whatever climbs that was not used."""
    return name.startswith(f"{HYPER}.") and OFF.get(name.rsplit(".", 1)[-1]) == value


def plain(value: Any) -> str:
    """A setting's value as a person would write it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _comparable(group: Mapping[str, Any], name: str) -> str | None:
    return json.dumps(group[name], sort_keys=True, default=str) if name in group else None
