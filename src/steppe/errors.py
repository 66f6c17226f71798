"""The errors that steppe raises for input a user can mend: the command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SteppeError(ValueError):
    """Something in the input is wrong; the message says what, where, and what to do."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> SteppeError:
    """The error for a name that is not known, with its near matches (or all names when nothing is near).

    Args:
        kind: what the name should have named, in the singular (``"algorithm"``, ``"domain"``).
        name: what was given.
        known: the names that exist.
    """
    names = list(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    near = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    known_names = "known: " + ", ".join(names)
    hint = f"did you mean {' or '.join(repr(match) for match in near)}?" if near else known_names
    return SteppeError(f"unknown {kind} {name!r}; {hint}")
