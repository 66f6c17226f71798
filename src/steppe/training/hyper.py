"""Hyper-parameters of a sum of words: what there are, what they are called, and the values to run with.

Two words of a sum may use one name with different meanings (``alpha`` of ``gsam`` and of ``looksam``), so the full name
is ``word.name``; the bare name does where one word of the sum has it. What a sum has only once (:data:`SHARED`: the
radius, the share of the batch) may be given for any of its words, and is recorded under one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from steppe.errors import SteppeError, unknown_name
from steppe.training.vocabulary import CLIMBING
from steppe.training.vocabulary_penalties import BATCH, PENALTIES
from steppe.training.vocabulary_trajectory import TRAJECTORY
from steppe.training.words import COMMON, RHO, SHARED, SLOTS, Parameter, Value, Word

Given = Mapping[str, object]
"""Hyper-parameters as a user gives them, by bare or full name; ``None`` is not given."""


def _listed(words: Iterable[Word]) -> dict[str, Word]:
    order = ["", *SLOTS]
    return {word.name: word for word in sorted(words, key=lambda word: order.index(word.slot))}


WORDS: Mapping[str, Word] = _listed((*CLIMBING, *BATCH, *PENALTIES, *TRAJECTORY))
"""Every word, slot by slot."""


def by_slot() -> dict[str, list[str]]:
    """Slot → the words listed there; those that answer nothing anew come last, under the empty name."""
    return {slot: [word.name for word in WORDS.values() if word.slot == slot] for slot in (*SLOTS, "")}


class Names:
    """The hyper-parameters of one sum, by full name.

    Args:
        algorithm: the sum's name, for messages.
        words: its words, in their order.
        radius: whether the radius is the number rho, which no word replaces.

    Attributes:
        parameters: full name → parameter.
    """

    def __init__(self, algorithm: str, words: Sequence[Word], *, radius: bool) -> None:
        self.algorithm = algorithm
        self.words = {word.name: word for word in words}
        self.parameters: dict[str, Parameter] = {}
        # What the words share starts from the geometry's value, whose own radius it may be, or else from the first's.
        climbing = sorted((word for word in words if word.climbs), key=lambda word: "geometry" not in word.fills)
        self._owners: dict[str, str] = {}
        for word in words:
            for parameter in word.parameters:
                if parameter.name not in SHARED:
                    self.parameters[f"{word.name}.{parameter.name}"] = parameter
        for name in SHARED:
            found = [(word.name, own) for word in climbing if (own := word.parameter(name)) is not None]
            if found and (radius or name != RHO.name):
                self._owners[name], parameter = found[0]
                self.parameters[f"{self._owners[name]}.{name}"] = parameter

    def full(self, name: str) -> str | None:
        """The full name of what a user calls ``name``; ``None`` where this sum has no such hyper-parameter.

        Raises:
            SteppeError: no word has it (with near matches), or a bare name means several in this sum.
        """
        word, bare = split(name)
        if not word:
            candidates = [full for full in self.parameters if full.partition(".")[2] == bare]
            if len(candidates) > 1:
                listed = ", ".join(candidates[:-1]) + " and " + candidates[-1]
                raise SteppeError(f"hyper-parameter {bare!r} of {self.algorithm!r} means {listed}: say which")
            return candidates[0] if candidates else None
        if word not in self.words:
            return None
        full = f"{self._owners.get(bare, word)}.{bare}"
        return full if full in self.parameters else None

    def values(self, given: Given) -> dict[str, Value]:
        """Every hyper-parameter with the value to run with, by full name; what is off is left out.

        A full name goes before a bare one: ``rho=0.1, asam.rho=1`` is 0.1 for every word but ``asam``.

        Raises:
            SteppeError: something was given that the sum does not take, or under two full names, or a value is out of
                range.
        """
        found: dict[str, Value] = {}
        said: dict[str, str] = {}
        for name, value in sorted(given.items(), key=lambda item: "." in item[0]):
            if value is None:
                continue
            full = self.full(name)
            if full is None:
                known = ", ".join(map(self.short, self.parameters)) or "none"
                rivals = [word.name for word in self.words.values() if "radius" in word.fills]
                why = f", as {rivals[0]!r} brings its own radius" if split(name)[1] == RHO.name and rivals else ""
                raise SteppeError(
                    f"algorithm {self.algorithm!r} has no hyper-parameter {name!r}{why}; it takes: {known}"
                )
            checked = self.parameters[full].value(value, name)
            if "." in said.get(full, "") and found[full] != checked:
                raise SteppeError(f"{said[full]} and {name} are the same in {self.algorithm!r}: give one of them")
            found[full], said[full] = checked, name
        defaults = {full: parameter.default for full, parameter in self.parameters.items()}
        values = {full: value for full, value in (defaults | found).items() if value is not None}
        return dict(sorted(values.items()))

    def short(self, full: str) -> str:
        """The bare name where that is enough."""
        bare = full.partition(".")[2]
        alone = sum(other.partition(".")[2] == bare for other in self.parameters) == 1
        return bare if alone else full

    def of(self, word: Word, values: Mapping[str, Value]) -> dict[str, Value]:
        """The values of one word by its own names, what the words share included."""
        own = {full.partition(".")[2]: value for full, value in values.items() if full.startswith(f"{word.name}.")}
        return {**self.shared(values), **own}

    def shared(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """What the sum has once, by bare name; empty where it does not climb."""
        return {name: values[full] for name, word in self._owners.items() if (full := f"{word}.{name}") in values}


def split(name: str) -> tuple[str, str]:
    """Word (empty for a bare name) and hyper-parameter, both spelt as in :data:`WORDS`.

    Raises:
        SteppeError: there is no such word, or it (for a bare name: any) has no such hyper-parameter.
    """
    word, dot, bare = name.strip().rpartition(".")
    word, bare = word.lower().replace("_", "-"), bare.replace("-", "_")
    if not dot:
        known = {parameter.name for each in WORDS.values() for parameter in (*each.parameters, *COMMON)}
        if bare not in known:
            raise unknown_name("hyper-parameter", name, sorted(known))
        return "", bare
    if word not in WORDS:
        raise unknown_name(f"word in the hyper-parameter {name!r}:", word, WORDS)
    if WORDS[word].parameter(bare) is None:
        own = WORDS[word]
        known = {parameter.name for parameter in (*own.parameters, *(COMMON if own.climbs else ()))}
        raise unknown_name(f"hyper-parameter of {word!r}:", bare, sorted(known))
    return word, bare


def flat(tree: Mapping[str, object]) -> dict[str, object]:
    """``{"coral": {"weight": 1}}``, as TOML's dotted keys and tables are read, as ``{"coral.weight": 1}``."""
    found: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found.update({f"{name}.{inner}": one for inner, one in flat(value).items()})
        else:
            found[name] = value
    return found
