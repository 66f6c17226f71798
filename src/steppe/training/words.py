"""What a word of the grammar is: which questions of a step it answers, and by which numbers.

A word is data. It names the classes that answer, so that the grammar can be listed, checked and explained without
importing torch; they are imported when a sum of words is built.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steppe.errors import SteppeError, unknown_name

Value = float | int | bool | str
"""What a hyper-parameter may be."""

SLOTS: Mapping[str, str] = {
    "penalty": "what is added to the loss; several add up",
    "batch": "what the model is shown",
    "objective": "what is climbed",
    "estimate": "which gradient points the way",
    "geometry": "which shape the neighbourhood has",
    "radius": "how far the climb goes",
    "descent": "which gradient the base optimizer gets",
    "schedule": "at which steps it climbs",
    "trajectory": "what becomes of the weights over the steps",
}
"""The questions, in the order in which the words of a sum are written."""

WRAPPED = {"estimate": "geometry", "schedule": "descent"}
"""Slots whose part stands in front of another slot's."""


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter of a word: its published value, what it means, and what it may be.

    Attributes:
        name: as in ``--hyper word.name=value``.
        default: ``None`` where it is off unless given.
        meaning: a few words, with the letter of the paper where it has one.
        kind: ``float``, ``int``, ``bool`` or ``str``.
        low: the smallest number allowed; excluded where ``above``.
        high: numbers stay below this, or may reach it where ``closed``.
        choices: the texts allowed.
    """

    name: str
    default: Value | None
    meaning: str
    kind: type = float
    low: float = 0.0
    above: bool = False
    high: float = math.inf
    closed: bool = False
    choices: tuple[str, ...] = ()

    def value(self, given: object, name: str) -> Value:
        """The value that was given, as a number, text or plain text from a command line.

        Raises:
            SteppeError: it is of the wrong kind or out of range; the message calls the parameter ``name``.
        """
        if self.kind is str:
            if given not in self.choices:
                raise unknown_name(name, str(given), self.choices)
            return str(given)
        if self.kind is bool:
            words = {"true": True, "false": False}
            found = given if isinstance(given, bool) else words.get(str(given).lower())
            if found is None:
                raise SteppeError(f"{name} must be true or false, got {given!r}")
            return found
        try:
            number = math.nan if isinstance(given, bool) else float(given)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number):
            raise SteppeError(f"{name} must be a {'whole ' if self.kind is int else ''}number, got {given!r}")
        whole = self.kind is not int or number == math.floor(number)
        if not (self._reaches_low(number) and self._stays_below(number) and whole):
            raise SteppeError(f"{name} must be {self.range}, got {given}")
        return int(number) if self.kind is int else number

    @property
    def range(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        what = "a whole number of " if self.kind is int else ""
        bound = "larger than" if self.above else "at least"
        below = "" if self.high == math.inf else f" and {'at most' if self.closed else 'below'} {self.high:g}"
        return f"{what}{bound} {self.low:g}{below}"

    def _reaches_low(self, number: float) -> bool:
        return number > self.low if self.above else number >= self.low

    def _stays_below(self, number: float) -> bool:
        return number <= self.high if self.closed else number < self.high


@dataclass(frozen=True)
class Part:
    """A class that answers a question, and what it is to be called with.

    Attributes:
        path: ``module:Class``.
        parameters: names of the word's hyper-parameters that are passed by their own names.
        renamed: argument → hyper-parameter, where the names differ.
        needs: what is passed of the surroundings: ``model``, ``head``, ``domains``, ``lr_max``, ``optimizer``.
        fixed: arguments that make this word what it is.
    """

    path: str
    parameters: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, str]:
        """Argument → the hyper-parameter that is passed for it."""
        return {**{name: name for name in self.parameters}, **self.renamed}

    @property
    def made(self) -> Any:
        """The class itself, imported now."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)

    def build(self, values: Mapping[str, Any], surroundings: Mapping[str, Any], **inner: Any) -> Any:
        """The part.

        Args:
            values: the word's hyper-parameters; what is off is absent.
            surroundings: what there is, for ``needs``.
            **inner: the part it stands in front of.
        """
        given = {argument: values.get(name) for argument, name in self.arguments.items()}
        return self.made(**{name: surroundings[name] for name in self.needs}, **given, **self.fixed, **inner)


@dataclass(frozen=True)
class Word:
    """One word of the grammar.

    Attributes:
        name: lower-case, with hyphens.
        summary: what it does, in a line.
        source: the paper.
        fills: slot → the part that answers it.
        offers: slot → a part that answers it where no other word does.
        switched: hyper-parameter → slot and part that it adds when it is given.
        refuses: slot → why no other word may fill it beside this one.
        parameters: its hyper-parameters.
        climbs: whether a step with it takes a second gradient at w + ε.
        cost: what it costs beside the passes of a step, in words.
    """

    name: str
    summary: str
    source: str
    fills: Mapping[str, Part] = field(default_factory=dict)
    offers: Mapping[str, Part] = field(default_factory=dict)
    switched: Mapping[str, tuple[str, Part]] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    climbs: bool = True
    cost: str = ""

    @property
    def slot(self) -> str:
        """Where it is listed: the first slot it fills; empty for a word that answers nothing anew."""
        return next((slot for slot in SLOTS if slot in self.fills), "")

    def parameter(self, name: str) -> Parameter | None:
        """Its hyper-parameter of that name, those included that every word that climbs has."""
        own = (*self.parameters, *(COMMON if self.climbs else ()))
        if self.climbs and "radius" not in self.fills:
            own = (*own, RHO)
        return next((parameter for parameter in own if parameter.name == name), None)


RHO = Parameter("rho", 0.05, "radius ρ of the climb")

COMMON = (
    Parameter("ascent_fraction", 1.0, "share of the batch that is climbed on", above=True, high=1.0, closed=True),
    Parameter("m", 1, "parts of the batch, each with a climb of its own", kind=int, low=1),
)
"""Options of every sum that climbs."""

SHARED_PASS = Parameter("shared", False, "take the climb's gradient for ∇L(w) and save a pass", kind=bool)

SHARED = (RHO.name, *(parameter.name for parameter in COMMON), SHARED_PASS.name)
"""What means the same in every word and is there once in a sum, whichever of its words it is given for."""
