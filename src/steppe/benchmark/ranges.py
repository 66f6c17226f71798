"""What a search may draw: DomainBed's ranges for what both have, and for steppe's own words the papers'.

DomainBed (Gulrajani and Lopez-Paz 2021, ``domainbed/hparams_registry.py``) draws every hyper-parameter from a
generator of its own, a NumPy ``RandomState`` that is seeded by ``seed_hash(seed, name)``. So the value of one does not
depend on which others there are, and the union of several words' ranges draws for each word what it would draw alone.
Here ``name`` is DomainBed's name for what DomainBed has, and the full name (``disam.lam``) for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from steppe.data.splits import seed_hash
from steppe.training.recipes import parse
from steppe.training.vocabulary_trajectory import LOOKAHEADS
from steppe.training.words import Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DOMAINBED = "Gulrajani and Lopez-Paz 2021"


class Range(Protocol):
    """Where a value may lie, and how likely."""

    def draw(self, random: np.random.RandomState) -> Value:
        """A value at random: the first of the generator's stream, as DomainBed would take it."""

    def distribution(self) -> BaseDistribution:
        """The same for Optuna; needs ``optuna``."""

    @property
    def text(self) -> str:
        """In words, for plans and pages."""


@dataclass(frozen=True)
class Power:
    """``base`` to the power of u, u uniform in [low, high]; ``whole``: rounded down."""

    base: int
    low: float
    high: float
    whole: bool = False

    def draw(self, random: np.random.RandomState) -> Value:
        """See :class:`Range`."""
        value = self.base ** random.uniform(self.low, self.high)
        return int(value) if self.whole else float(value)

    def distribution(self) -> BaseDistribution:
        """See :class:`Range`; uniform in the logarithm."""
        from optuna.distributions import FloatDistribution, IntDistribution

        low, high = float(self.base) ** self.low, float(self.base) ** self.high
        if self.whole:
            return IntDistribution(int(low), max(int(low), int(np.ceil(high)) - 1), log=True)
        return FloatDistribution(low, high, log=True)

    @property
    def text(self) -> str:
        """See :class:`Range`."""
        return f"{'whole part of ' if self.whole else ''}{self.base}^U({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class Uniform:
    """Uniform in [low, high]; ``whole``: rounded down."""

    low: float
    high: float
    whole: bool = False

    def draw(self, random: np.random.RandomState) -> Value:
        """See :class:`Range`."""
        value = random.uniform(self.low, self.high)
        return int(value) if self.whole else float(value)

    def distribution(self) -> BaseDistribution:
        """See :class:`Range`."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(np.ceil(self.high)) - 1)
        return FloatDistribution(self.low, self.high)

    @property
    def text(self) -> str:
        """See :class:`Range`."""
        return f"{'whole part of ' if self.whole else ''}U({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class OneOf:
    """One of some values, each as likely."""

    values: tuple[float | str, ...]

    def draw(self, random: np.random.RandomState) -> Value:
        """See :class:`Range`."""
        value = random.choice(list(self.values))
        if isinstance(value, str):
            return str(value)  # NumPy's own class of it otherwise
        return int(value) if self._whole else float(value)

    def distribution(self) -> BaseDistribution:
        """See :class:`Range`."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    @property
    def text(self) -> str:
        """See :class:`Range`."""
        return "one of " + ", ".join(value if isinstance(value, str) else f"{value:g}" for value in self.values)

    @property
    def _whole(self) -> bool:
        return all(isinstance(value, int) for value in self.values)


@dataclass(frozen=True)
class Searched:
    """A setting that a search draws.

    Attributes:
        range: where from.
        source: whose range it is.
        drawn_as: DomainBed's name of it, which seeds its generator; empty: its own full name.
        default: what draw 0 has: of a training setting DomainBed's, of a hyper-parameter the published value.
    """

    range: Range
    source: str
    drawn_as: str = ""
    default: Value | None = None


Space = Mapping[str, Searched]
"""Setting (``lr``, or a hyper-parameter's full name) → how it is drawn."""


def _domainbed(drawn_as: str, range: Range, default: Value | None = None) -> Searched:
    return Searched(range, DOMAINBED, drawn_as, default)


def _around(paper: str, range: Range) -> Searched:
    return Searched(range, paper)


SETTINGS: Space = {
    "lr": _domainbed("lr", Power(10, -5, -3.5), 5e-5),
    "weight_decay": _domainbed("weight_decay", Power(10, -6, -2), 0.0),
    "batch_per_domain": _domainbed("batch_size", Power(2, 3, 5.5, whole=True), 32),
    "dropout": _domainbed("resnet_dropout", OneOf((0.0, 0.1, 0.5)), 0.0),
}
"""What is drawn for every algorithm on pictures."""

SMALL: Space = {
    "lr": _domainbed("lr", Power(10, -4.5, -2.5), 1e-3),
    "weight_decay": _domainbed("weight_decay", OneOf((0.0,)), 0.0),
    "batch_per_domain": _domainbed("batch_size", Power(2, 3, 9, whole=True), 64),
}
"""The same on the sets made of MNIST, whose network has no dropout in DomainBed."""

DOMAINNET: Space = {**SETTINGS, "batch_per_domain": _domainbed("batch_size", Power(2, 3, 5, whole=True), 32)}
"""The same on DomainNet, where a step with six domains is large."""

_ANCHOR, _REDUCTION = "lookahead-anchor", "anchor_reduction"
_WEIGHT = Power(10, -2, 0)
_DECAY = OneOf((0.99, 0.999, 0.9999))
_STEPS = Power(10, 0, 4, whole=True)
_LOOKAHEAD: Mapping[str, Range] = {
    "k": OneOf((5, 10, 15, 20)),
    "alpha": Power(10, -2, 0),
    "lr_factor": Power(10, 0, 1),
}

OWN: Mapping[str, Searched] = {
    # DomainBed's algorithms.
    "irm.weight": _domainbed("irm_lambda", Power(10, -1, 5)),
    "irm.anneal_steps": _domainbed("irm_penalty_anneal_iters", _STEPS),
    "mixup.alpha": _domainbed("mixup_alpha", Power(10, -1, 1)),
    "groupdro.eta": _domainbed("groupdro_eta", Power(10, -3, -1)),
    "mmd.weight": _domainbed("mmd_gamma", Power(10, -1, 1)),
    "coral.weight": _domainbed("mmd_gamma", Power(10, -1, 1)),
    "vrex.weight": _domainbed("vrex_lambda", Power(10, -1, 5)),
    "vrex.anneal_steps": _domainbed("vrex_penalty_anneal_iters", _STEPS),
    "fishr.weight": _domainbed("lambda", Power(10, 1.0, 4.0)),
    "fishr.anneal_steps": _domainbed("penalty_anneal_iters", Uniform(0.0, 5000.0, whole=True)),
    "fishr.ema": _domainbed("ema", Uniform(0.90, 0.99)),
    # Steppe's own.
    "rho": Searched(OneOf((0.01, 0.02, 0.05, 0.1, 0.2, 0.5)), "Foret et al. 2021, their grid"),
    "asam.rho": _around("around Kwon et al. 2021 (0.5)", OneOf((0.1, 0.2, 0.5, 1.0, 2.0))),
    "disam.lam": Searched(Uniform(0.1, 0.7), "Zhang et al. 2024, where results are stable"),
    "gsam.alpha": Searched(Uniform(0.1, 0.4), "Zhuang et al. 2022, the values of their experiments"),
    "sagm.alpha": _around("around Wang et al. 2023 (0.001)", Power(10, -4, -2)),
    "fsam.gamma": _around("around Kim et al. 2022 (0.1)", _WEIGHT),
    "fsam.eta": _around("around Kim et al. 2022 (0.1)", _WEIGHT),
    "tram-fisher.gamma": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "tram-fisher.eta": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "tram-fisher.sigma": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "tram-fisher-shared.gamma": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "tram-fisher-shared.eta": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "tram-fisher-shared.sigma": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "tram-x.sigma": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "tram-ema.decay": _around("around Sherborne et al. 2024 (0.999)", _DECAY),
    "friendly.sigma": _around("around Li et al. 2024 (1)", Uniform(0.5, 1.0)),
    "friendly.decay": _around("around Li et al. 2024 (0.9)", OneOf((0.6, 0.9, 0.95))),
    "vasso.theta": _around("around Li and Giannakis 2023 (0.9)", OneOf((0.2, 0.4, 0.9))),
    "looksam.every": _around("around Liu et al. 2022 (5)", OneOf((2, 5, 10))),
    "looksam.alpha": _around("around Liu et al. 2022 (0.7)", OneOf((0.5, 0.7, 1.0))),
    "trpo.weight": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "r3f.weight": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "r3f.sigma": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "mesa.weight": _around("around Sherborne et al. 2024 (0.1)", _WEIGHT),
    "mesa.decay": _around("around Sherborne et al. 2024 (0.999)", _DECAY),
    **{
        f"{word}.{name}": _around(
            "around Zhang, Qi et al. 2024 (k 15, alpha 0.05, five times the learning rate)", range
        )
        for word in LOOKAHEADS
        for name, range in _LOOKAHEAD.items()
    },
    # Not around the published 0.01 of a mean over all weights, which pulls none of some millions.
    f"{_ANCHOR}.anchor": Searched(Power(10, -1, 1), "steppe's own, for the sum over the weights"),
    f"{_ANCHOR}.{_REDUCTION}": Searched(OneOf(("sum",)), "steppe's own, as anchor's range"),
    "swad.tolerance_ratio": Searched(OneOf((0.2, 0.3)), "Cha et al. 2021, their two values"),
    "ema.decay": _around("around 0.999", _DECAY),
}
"""Hyper-parameter → how it is drawn, by full name; ``rho`` of every word without a range of its own.

What is not here (the parts of a batch that climb, norms, options) keeps its published value in every draw.
"""


def space_of(algorithm: str, dataset: str, fixed: Collection[str] = ()) -> dict[str, Searched]:
    """What a search draws for an algorithm on a data set: the training settings, and the union of its words' own.

    Args:
        algorithm: a word or a sum of words.
        dataset: its name. DomainBed has other ranges for the sets made of MNIST, and for DomainNet.
        fixed: settings that are not drawn, by field, bare or full name.

    Raises:
        SteppeError: the algorithm or a name in ``fixed`` is not known.
    """
    recipe = parse(algorithm)
    space = dict(_of_dataset(dataset))
    for full, published in recipe.hyper({}).items():
        searched = OWN.get(full) or OWN.get(full.partition(".")[2])
        if searched is not None:
            space[full] = replace(searched, default=published)
    kept = {name if name in SETTINGS else recipe.names.full(name) for name in fixed}
    if kept & {f"{_ANCHOR}.anchor", f"{_ANCHOR}.{_REDUCTION}"}:
        kept.add(f"{_ANCHOR}.{_REDUCTION}")  # a strength that was given is meant with the reduction that was
    return {name: searched for name, searched in space.items() if name not in kept}


def random_draw(space: Space, seed: int) -> dict[str, Value]:
    """The draw of a seed: what DomainBed has too gets the values of its ``random_hparams(…, seed)``, digit by digit.

    DomainBed's own sweep seeds the draw ``n`` of a trial by :func:`draw_seed`.
    """
    return {
        # RandomState, not default_rng: its stream is the one DomainBed draws from, and NumPy has frozen it.
        name: searched.range.draw(np.random.RandomState(seed_hash(int(seed), searched.drawn_as or name)))
        for name, searched in space.items()
    }


def default_draw(space: Space) -> dict[str, Value]:
    """Draw 0: DomainBed's defaults for the training settings, the published values of the hyper-parameters."""
    return {name: searched.default for name, searched in space.items() if searched.default is not None}


def draw_seed(draw: int, trial_seed: int) -> int:
    """The seed of draw ``draw`` ≥ 1 of a trial, as DomainBed's training script takes it."""
    return seed_hash(int(draw), int(trial_seed))


def _of_dataset(name: str) -> Space:
    plain = re.sub(r"[^a-z]", "", name.lower())
    if plain.startswith(("rotatedmnist", "coloredmnist")):
        return SMALL
    return DOMAINNET if plain == "domainnet" else SETTINGS
