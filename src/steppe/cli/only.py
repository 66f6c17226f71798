"""``--only``: a part of a sweep, by what its runs are about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from steppe.errors import SteppeError, unknown_name

KEYS = {
    "dataset": "data set",
    "held-out": "held-out domain",
    "algorithm": "algorithm",
    "seed": "seed",
    "selection": "selection",
}
"""What a part may be named by, and what that is."""


def parse_only(given: Sequence[str]) -> dict[str, list[str]]:
    """``["held-out=line", "seed=0", "seed=1"]`` as ``{"held-out": ["line"], "seed": ["0", "1"]}``.

    Raises:
        SteppeError: something is not of this form, or not one of :data:`KEYS`.
    """
    found: dict[str, list[str]] = {}
    for word in given:
        name, equals, value = word.partition("=")
        key = name.strip().replace("_", "-")
        if not equals or not value:
            raise SteppeError(f"--only takes NAME=VALUE, such as held-out=line, got {word!r}")
        if key not in KEYS:
            raise unknown_name("part of a sweep in --only", name, KEYS)
        found.setdefault(key, []).append(value)
    return found


def limited(
    only: Mapping[str, Sequence[str]],
    key: str,
    members: Sequence[str],
    *,
    spelt: Callable[[str], str] = str,
    known: Sequence[str] | None = None,
) -> list[str]:
    """Those of the sweep's ``members`` that ``--only`` keeps, in their order.

    Args:
        spelt: brings a value to the spelling of the members.
        known: what may be named; by default the members.

    Raises:
        SteppeError: a value names nothing in the sweep (with near matches).
    """
    if key not in only:
        return list(members)
    wanted = [spelt(value) for value in only[key]]
    for value in wanted:
        if value not in (members if known is None else known):
            error = unknown_name(KEYS[key], value, members if known is None else known)
            raise SteppeError(f"--only {key}={value}: this sweep has no such part; {error}")
    return [member for member in members if member in wanted]
