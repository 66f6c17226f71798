"""The grammar of algorithms: ``erm``, ``sam``, ``disam``, and sums of words such as ``disam+sagm``.

Each word answers some of the questions a sharpness-aware step asks (its *slots*); what no word answers keeps SAM's
answer: the mean loss, the Euclidean ball, a constant radius, the gradient at w + ε. A new word is one entry of
:data:`WORDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steppe.errors import SteppeError, unknown_name

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Hyper = Mapping[str, float]
Filler = Callable[[Hyper, "Optimizer"], Any]

SLOTS = ("objective", "geometry", "radius", "descent")
"""In the order in which the words of a sum are written."""


@dataclass(frozen=True)
class Word:
    """One word of the grammar.

    Attributes:
        fills: the slots it answers, each with the function that builds the part.
        defaults: its hyper-parameters and their published values.
        scheduled: hyper-parameters it also takes, that change which slots it fills.
        climbs: whether the step climbs at all (``erm`` does not).
        summary: one line for the help page.
        source: the paper.
    """

    name: str
    fills: Mapping[str, Filler]
    defaults: Mapping[str, float]
    summary: str
    source: str
    scheduled: tuple[str, ...] = ()
    climbs: bool = True


def _variance(hyper: Hyper, base: Optimizer) -> Any:
    from steppe.objectives import DomainVariance

    return DomainVariance(lam=hyper["lam"])


def _adaptive(hyper: Hyper, base: Optimizer) -> Any:
    from steppe.geometries import Adaptive

    return Adaptive(eta=hyper["eta"])


def _surrogate_gap(hyper: Hyper, base: Optimizer) -> Any:
    from steppe.descents import SurrogateGap

    return SurrogateGap(alpha=hyper["alpha"])


def _gradient_matching(hyper: Hyper, base: Optimizer) -> Any:
    from steppe.descents import GradientMatching

    return GradientMatching(alpha=hyper["alpha"])


def _radius(hyper: Hyper, base: Optimizer) -> Any:
    from steppe.radii import Proportional

    if "rho_min" not in hyper:
        return hyper["rho"]
    return Proportional(hyper["rho"], hyper["rho_min"], lr_max=base.param_groups[0]["lr"], lr_min=0.0)


WORDS: Mapping[str, Word] = {
    word.name: word
    for word in (
        Word(
            "erm",
            fills={},
            defaults={},
            climbs=False,
            summary="the base optimizer alone, the baseline",
            source="Vapnik 1998",
        ),
        Word(
            "sam",
            fills={},
            defaults={"rho": 0.05},
            summary="the gradient at the worst point within rho",
            source="Foret et al. 2021",
        ),
        Word(
            "disam",
            fills={"objective": _variance},
            defaults={"rho": 0.05, "lam": 0.1},
            summary="climbs so that the domains converge at one pace",
            source="Zhang et al. 2024",
        ),
        Word(
            "asam",
            fills={"geometry": _adaptive},
            defaults={"rho": 0.5, "eta": 0.01},
            summary="a neighbourhood that scales with each weight",
            source="Kwon et al. 2021",
        ),
        Word(
            "gsam",
            fills={"descent": _surrogate_gap},
            defaults={"rho": 0.05, "alpha": 0.4},
            scheduled=("rho_min",),
            summary="also closes the gap between loss and worst loss",
            source="Zhuang et al. 2022",
        ),
        Word(
            "sagm",
            fills={"descent": _gradient_matching},
            defaults={"rho": 0.05, "alpha": 0.001},
            summary="aligns the gradients at w and at the worst point",
            source="Wang et al. 2023",
        ),
    )
}


@dataclass(frozen=True)
class Recipe:
    """An algorithm as a sum of words, each slot filled at most once. Made by :func:`parse`.

    Attributes:
        name: the canonical spelling: words in the order of :data:`SLOTS`, without those that change nothing.
    """

    name: str
    words: tuple[Word, ...] = field(repr=False)

    @property
    def climbs(self) -> bool:
        """Whether a step takes more than one gradient (everything but ``erm``)."""
        return any(word.climbs for word in self.words)

    @property
    def defaults(self) -> dict[str, float]:
        """Every hyper-parameter with its published value; the radius is that of the word that fills the geometry."""
        merged: dict[str, float] = {}
        for word in self.words:
            merged.update(word.defaults)
        for word in self.words:
            if "geometry" in word.fills:
                merged["rho"] = word.defaults["rho"]
        return merged

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of all hyper-parameters that may be given."""
        scheduled = [name for word in self.words for name in word.scheduled]
        return (*self.defaults, *scheduled)

    def hyper(self, given: Mapping[str, float | None]) -> dict[str, float]:
        """The values to run with: what was given (``None`` is not given), otherwise the published values.

        Raises:
            SteppeError: a hyper-parameter was given that no word of the sum takes.
        """
        values = self.defaults
        for name, value in given.items():
            if value is None:
                continue
            if name not in self.takes:
                known = ", ".join(self.takes) if self.takes else "none"
                raise SteppeError(f"algorithm {self.name!r} has no hyper-parameter {name!r}; it takes: {known}")
            values[name] = float(value)
        return dict(sorted(values.items()))

    def build(self, base: Optimizer, model: nn.Module, hyper: Hyper) -> Optimizer:
        """The optimizer: ``base`` itself for ``erm``, otherwise a :class:`steppe.SharpnessAware` around it.

        Args:
            base: the base optimizer over the parameters of ``model``, at the schedule's largest learning rate.
            model: the model, so that running statistics see clean weights only.
            hyper: the values from :meth:`hyper`.
        """
        if not self.climbs:
            return base
        from steppe.descents import Perturbed
        from steppe.geometries import Euclidean
        from steppe.objectives import Mean
        from steppe.sharpness import SharpnessAware

        parts: dict[str, Any] = {
            "objective": Mean(),
            "geometry": Euclidean(),
            "radius": _radius(hyper, base),
            "descent": Perturbed(),
        }
        for word in self.words:
            parts.update({slot: fill(hyper, base) for slot, fill in word.fills.items()})
        return SharpnessAware(base, model=model, **parts)


def parse(name: str) -> Recipe:
    """The recipe that a name such as ``"disam+sagm"`` stands for; the order of its words does not matter.

    Raises:
        SteppeError: a word is not known (with near matches), two words fill one slot, or ``erm`` is in a sum.
    """
    words = []
    for part in name.lower().split("+"):
        word = WORDS.get(part.strip())
        if word is None:
            raise unknown_name("algorithm", part.strip() or name, WORDS)
        words.append(word)
    filled: dict[str, Word] = {}
    for word in words:
        for slot in word.fills:
            if slot in filled:
                raise SteppeError(
                    f"algorithm {name!r}: {filled[slot].name!r} and {word.name!r} both fill the slot {slot!r}; keep one"
                )
            filled[slot] = word
    if len(words) > 1:
        if not all(word.climbs for word in words):
            raise SteppeError(f"algorithm {name!r}: 'erm' climbs nowhere, so it cannot be part of a sum; leave it out")
        words = [word for word in words if word.fills] or words[:1]
    words.sort(key=lambda word: min((SLOTS.index(slot) for slot in word.fills), default=len(SLOTS)))
    return Recipe("+".join(word.name for word in words), tuple(words))
