"""Searching hyper-parameters: what is tried for one data set, algorithm, held-out domain and seed, and in which order.

Two ways with one interface. :class:`RandomDraws` are DomainBed's: all at once, number for number what its sweep tries.
:class:`TreeParzen` is Optuna's TPE: one trial after the other, each proposed from those before it. Draw 0 is the
defaults in both. Both repeat themselves exactly: a proposal depends on the seed, its number and what was found so far,
so a search that was killed goes on with the same proposal, and two processes that search the same make the same runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from steppe.benchmark.ranges import Space, default_draw, draw_seed, random_draw
from steppe.training.words import Value

Stop = Callable[[int, float], bool]
"""Step and validation accuracy → whether a run is to be stopped there; see :class:`steppe.Trainer`."""


@dataclass(frozen=True)
class Proposal:
    """A choice of hyper-parameters to try.

    Attributes:
        number: 0 for the defaults.
        values: setting → value.
        stop: asked after each evaluation of its run, where a search prunes. Picklable: runs may be anywhere.
    """

    number: int
    values: Mapping[str, Value]
    stop: Stop | None = None


@dataclass(frozen=True)
class Found:
    """What became of a proposal.

    Attributes:
        score: what the selection gives it; only of a finished one.
        curve: step and validation accuracy of its evaluations.
    """

    state: Literal["finished", "pruned", "failed"]
    score: float | None = None
    curve: Sequence[tuple[int, float]] = ()


class Search(Protocol):
    """The proposals for one data set, algorithm, held-out domain and seed."""

    def ask(self) -> list[Proposal]:
        """What can be tried now; empty when there is nothing more. What was asked and not told is asked again."""

    def tell(self, number: int, found: Found) -> None:
        """What became of a proposal; told again, it is ignored."""

    def asked(self) -> list[Proposal]:
        """Every proposal so far, told or not, by number."""


@dataclass
class AsGiven:
    """No search: the settings as they are."""

    told: bool = False

    def ask(self) -> list[Proposal]:
        """See :class:`Search`."""
        return [] if self.told else self.asked()

    def tell(self, number: int, found: Found) -> None:
        """See :class:`Search`."""
        self.told = True

    def asked(self) -> list[Proposal]:
        """See :class:`Search`."""
        return [Proposal(0, {})]


@dataclass
class RandomDraws:
    """DomainBed's random search: draw 0 is the defaults, draw n that of ``seed_hash(n, trial seed)``.

    Args:
        space: what is drawn.
        count: how many draws, the defaults included.
        seed: the trial's: as in DomainBed each trial has draws of its own.
    """

    space: Space
    count: int
    seed: int
    _told: set[int] = field(default_factory=set)

    def ask(self) -> list[Proposal]:
        """See :class:`Search`."""
        return [proposal for proposal in self.asked() if proposal.number not in self._told]

    def tell(self, number: int, found: Found) -> None:
        """See :class:`Search`."""
        self._told.add(number)

    def asked(self) -> list[Proposal]:
        """See :class:`Search`."""
        return [Proposal(number, self._values(number)) for number in range(self.count)]

    def _values(self, number: int) -> dict[str, Value]:
        return default_draw(self.space) if number == 0 else random_draw(self.space, draw_seed(number, self.seed))


@dataclass
class TreeParzen:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), which maximises the selection's score.

    The study is a file that several processes may share. It can be made again: proposals repeat themselves, and runs
    that are there are not repeated; so one that is damaged is set aside.

    Args:
        space: what is searched.
        count: how many trials, the defaults included.
        seed: of the search: trial n draws by ``seed_hash(seed, n)``, so that it does not matter who draws it.
        journal: the study's file.
        prune: stop runs whose validation accuracy is below the median of the finished trials at the same step
            (Optuna's ``MedianPruner``, from the sixth trial on).
        say: is told of what was mended.
    """

    space: Space
    count: int
    seed: int
    journal: Path
    prune: bool = True
    say: Callable[[str], None] = print

    def ask(self) -> list[Proposal]:
        """See :class:`Search`."""
        from steppe.benchmark.studies import next_trial

        trial = next_trial(self.journal, self.space, count=self.count, seed=self.seed, say=self.say)
        return [] if trial is None else [self._proposal(trial.number, trial.values)]

    def tell(self, number: int, found: Found) -> None:
        """See :class:`Search`."""
        from steppe.benchmark.studies import tell_trial

        tell_trial(self.journal, number, found.state, found.score, found.curve, say=self.say)

    def asked(self) -> list[Proposal]:
        """See :class:`Search`."""
        from steppe.benchmark.studies import all_trials

        return [self._proposal(trial.number, trial.values) for trial in all_trials(self.journal, say=self.say)]

    def _proposal(self, number: int, values: Mapping[str, Value]) -> Proposal:
        from steppe.benchmark.studies import BelowMedian

        return Proposal(number, values, BelowMedian(self.journal, number) if self.prune else None)
