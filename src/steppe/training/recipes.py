"""The grammar of algorithms: ``erm``, ``sam``, ``disam``, and sums of words such as ``coral+disam+sagm``.

Each word answers some of the questions a step asks (its *slots*, :data:`~steppe.training.words.SLOTS`); what no word
answers keeps SAM's answer: the mean loss, the Euclidean ball, a constant radius, the gradient at w + ε. A sum of words
that do not climb is the base optimizer with what they add to the loss. A new word is one entry of
:mod:`~steppe.training.vocabulary` or :mod:`~steppe.training.vocabulary_penalties`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from steppe.errors import SteppeError, unknown_name
from steppe.training.hyper import WORDS, Given, Names
from steppe.training.words import COMMON, RHO, SLOTS, WRAPPED, Part, Value, Word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.optim import Optimizer

    from steppe.training.method import Method

NEEDS = {
    "model": "model=, the model that the closure calls",
    "head": "head=, the module that maps features to logits",
    "domains": "domains=, the number of training domains",
}
"""What some words cannot do without, and how it is given."""


@dataclass(frozen=True)
class Recipe:
    """An algorithm as a sum of words, each slot filled at most once. Made by :func:`parse`.

    Attributes:
        name: the canonical spelling: words in the order of the slots, without those that change nothing.
        words: the words in that order.
    """

    name: str
    words: tuple[Word, ...] = field(repr=False)

    @property
    def climbs(self) -> bool:
        """Whether a step takes more than one gradient."""
        return any(word.climbs for word in self.words)

    @cached_property
    def names(self) -> Names:
        """The sum's hyper-parameters."""
        return Names(self.name, self.words, radius="radius" not in self.parts({}))

    def takes(self, name: str) -> bool:
        """Whether a hyper-parameter (bare or full name) is one of this sum's.

        Raises:
            SteppeError: no word has it, or the bare name means several here.
        """
        return self.names.full(name) is not None

    def hyper(self, given: Given | None = None) -> dict[str, Value]:
        """Every hyper-parameter with the value to run with, as ``word.name``: what was given, else the published one.

        Raises:
            SteppeError: something was given that no word of the sum takes, twice, out of range, or what excludes
                another.
        """
        values = self.names.values(given or {})
        filled = self.parts(values)
        options = self.names.shared(values)
        if options.get("m", 1) != 1:
            if options["ascent_fraction"] != 1:
                raise SteppeError(f"{self.name!r}: ascent_fraction and m exclude each other; give one of them")
            for word, part in filled.values():
                if part.fixed.get("reference") == "previous":
                    raise SteppeError(
                        f"{self.name!r}: {word.name!r} compares with the weights one step ago, which m > 1 overwrites"
                    )
        return values

    def parts(self, values: Mapping[str, Value]) -> dict[str, tuple[Word, Part]]:
        """Slot → the word that fills it, penalties aside, and its part.

        Args:
            values: hyper-parameters from :meth:`hyper`, of which some fill a slot.

        Raises:
            SteppeError: two words fill one slot; the message names it and both.
        """
        filled: dict[str, tuple[Word, Part]] = {}
        for word in self.words:
            own = dict(word.fills)
            for name, (slot, part) in word.switched.items():
                if f"{word.name}.{name}" in values:
                    own[slot] = part
            for slot, part in own.items():
                if slot == "penalty":
                    continue
                if slot in filled:
                    raise rivals(self.name, slot, filled[slot][0], word)
                filled[slot] = (word, part)
        for word in self.words:
            for slot, part in word.offers.items():
                filled.setdefault(slot, (word, part))
        return filled

    def build(
        self,
        base: Optimizer,
        model: nn.Module | None = None,
        hyper: Given | None = None,
        *,
        head: nn.Module | None = None,
        domains: int | Sequence[int] | None = None,
        **options: Any,
    ) -> Method:
        """The algorithm around a base optimizer; see :func:`build`."""
        from steppe.averaging import Lookahead
        from steppe.penalties import Mixup
        from steppe.sharpness import SharpnessAware
        from steppe.training.method import Method

        values = self.hyper(hyper)
        surroundings: dict[str, Any] = {
            "model": model,
            "head": head,
            "domains": domains,
            "lr_max": base.param_groups[0]["lr"],
        }

        def made(word: Word, part: Part, **inner: Any) -> Any:
            for need in part.needs:
                if surroundings[need] is None:
                    raise SteppeError(f"{word.name!r} of {self.name!r} needs {NEEDS[need]}")
            return part.build(self.names.of(word, values), surroundings, **inner)

        parts: dict[str, Any] = {}
        filled = self.parts(values)
        trajectory = filled.pop("trajectory", None)
        for slot, (word, part) in sorted(filled.items(), key=lambda each: each[0] in WRAPPED):
            behind = WRAPPED.get(slot)
            if behind is None:
                parts[slot] = made(word, part)
            else:
                parts[behind] = made(word, part, **{behind: parts.get(behind)})
        mixup: Mixup | None = parts.pop("batch", None)
        shared: dict[str, Any] = self.names.shared(values)
        parts.setdefault("radius", shared.get(RHO.name, 0.0))
        division = {parameter.name: shared[parameter.name] for parameter in COMMON if parameter.name in shared}
        penalties = {word.name: made(word, word.fills["penalty"]) for word in self.words if "penalty" in word.fills}
        for name in options.keys() & (division.keys() | parts.keys()):
            raise SteppeError(f"{name} of {self.name!r} is a word's or a hyper-parameter: give it in hyper")
        surroundings["optimizer"] = SharpnessAware(base, model=model, **parts, **division, **options)
        weights = None if trajectory is None else made(*trajectory)
        if isinstance(weights, Lookahead):
            return Method(self.name, weights, penalties, mixup)
        return Method(self.name, surroundings["optimizer"], penalties, mixup, weights)


def parse(name: str) -> Recipe:
    """The recipe that a name such as ``"coral+disam+sagm"`` stands for; the order of its words does not matter.

    Raises:
        SteppeError: a word is not known (with near matches), or two words do not go together.
    """
    words: list[Word] = []
    for part in name.lower().split("+"):
        word = WORDS.get(part.strip().replace("_", "-"))
        if word is None:
            raise _no_word(name, part.strip() or name)
        if word in words and "penalty" in word.fills:
            raise SteppeError(f"algorithm {name!r}: {word.name!r} fills the slot 'penalty' twice; give it once")
        words.append(word)
    Recipe(name, tuple(words)).parts({})  # two words for one slot
    climbing = [word for word in words if word.climbs]
    for word in words:
        if climbing and word.name == "erm":
            raise SteppeError(
                f"algorithm {name!r}: 'erm' does not climb (its 'radius' is 0) and {climbing[0].name!r} does; "
                "leave out one of them"
            )
        for slot, why in word.refuses.items():
            for other in words:
                if other is not word and slot in other.fills:
                    raise SteppeError(
                        f"algorithm {name!r}: {other.name!r} fills the slot {slot!r}, but {word.name!r} {why}"
                    )
    # sam beside a word that climbs, and erm beside one that does not, say nothing new.
    telling = [word for word in words if word.fills]
    if not any(word.climbs for word in telling):
        telling += climbing[:1] or ([] if telling else words[:1])
    order = list(SLOTS)
    order.insert(order.index("trajectory"), "")
    telling.sort(key=lambda word: (order.index(word.slot), word.name))
    return Recipe("+".join(word.name for word in telling), tuple(telling))


def build(
    algorithm: str,
    base: Optimizer,
    model: nn.Module | None = None,
    hyper: Given | None = None,
    *,
    head: nn.Module | None = None,
    domains: int | Sequence[int] | None = None,
    **options: Any,
) -> Method:
    """A sum of words around a base optimizer, for a training loop of your own::

        method = steppe.build("coral+disam+sagm", base, model, {"coral.weight": 0.5})

        for x, y, domain in loader:

            def closure():
                method.zero_grad()
                features = model.features(x)
                losses = F.cross_entropy(model.head(features), y, reduction="none")
                loss = method.loss(losses, domain, features=features)
                loss.backward()
                return loss

            loss = method.step(closure)

    Pass to ``method.loss`` what ``method.needs`` names (more does no harm). Words that look at predictions, such as
    ``tram``, need the closure to call ``model`` itself; ``docs/methods.md`` has a closure that suits every sum.

    Args:
        algorithm: words joined by ``+``, in any order; ``steppe list`` shows them.
        base: the optimizer that makes the step, at its schedule's largest learning rate.
        model: the model that the closure calls: for the words that look at its predictions, and so that running
            statistics see clean weights only.
        hyper: hyper-parameters by ``"word.name"``, or by the bare name where one word of the sum has it; what is not
            given has its published value.
        head: maps features to logits; for ``fishr``.
        domains: how many training domains there are, or their labels; for ``fishr`` and ``groupdro``.
        **options: of :class:`~steppe.sharpness.SharpnessAware`, such as ``same_dropout``.

    Returns:
        A :class:`~steppe.training.method.Method`. Its ``optimizer`` is a :class:`~steppe.sharpness.SharpnessAware`
        whatever the words (for ``erm`` one that never climbs, which is the base optimizer), or a
        :class:`~steppe.averaging.Lookahead` around one, which has the same methods; so a loop need not know them.

    Raises:
        SteppeError: a word or a hyper-parameter is not known, two words fill one slot, or a word needs what was not
            given.
    """
    return parse(algorithm).build(base, model, hyper, head=head, domains=domains, **options)


def check_taken(algorithms: Iterable[str], given: Given) -> None:
    """Raise ``SteppeError`` unless each hyper-parameter that was given is one of some algorithm's."""
    recipes = [parse(algorithm) for algorithm in algorithms]
    for name in given:
        taken = [recipe.takes(name) for recipe in recipes]
        if not any(taken):
            names = ", ".join(recipe.name for recipe in recipes)
            raise SteppeError(f"{name} was given, but none of the algorithms ({names}) takes it")


def _no_word(name: str, word: str) -> SteppeError:
    """The error for what is no word of a sum, or for words that something else than ``+`` joins."""
    pieces = re.split(r"[\s,;&|/]+", word)
    if len(pieces) > 1 and all(piece in WORDS for piece in pieces):
        return SteppeError(f"algorithm {name!r}: words are joined by '+', as in {'+'.join(pieces)}")
    return unknown_name("algorithm", word, WORDS)


def rivals(name: str, slot: str, first: Word, second: Word) -> SteppeError:
    """The error for two words that answer one question."""
    return SteppeError(f"algorithm {name!r}: {first.name!r} and {second.name!r} both fill the slot {slot!r}; keep one")
