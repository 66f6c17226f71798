"""The options of a search, for the command line and a TOML file. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from steppe.errors import SteppeError
from steppe.training.config import unset

SearchName = Literal["random", "tpe"]
SelectionName = Literal["training", "leave-one-out", "oracle"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Whether hyper-parameters are searched, and how.

    Raises:
        SteppeError: options that do not go together, or a number below 1.
    """

    draws: Annotated[int | None, unset("no search")] = None
    """Random draws of the hyper-parameters, DomainBed's; the first is the defaults. Its sweeps take 20."""
    search: Annotated[SearchName | None, unset("random with --draws")] = None
    """tpe proposes each trial after the ones before it, and prunes what lies below their median."""
    trials: Annotated[int | None, unset("none")] = None
    """With --search: how many, for each data set, algorithm, held-out domain and seed."""
    fixed: Annotated[tuple[str, ...], unset("what differs from its default")] = ()
    """Settings that are not searched (lr, batch_per_domain, disam.lam); what you give another value is not either."""
    prune: bool = True
    """With --search tpe: stop trials whose validation accuracy is below the median of the finished ones."""

    def __post_init__(self) -> None:
        for name in ("draws", "trials"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SteppeError(f"{name} must be at least 1, got {value}")
        if self.draws is not None and self.search == "tpe":
            raise SteppeError("draws are random: give the number of a tpe search by --trials")
        if self.draws is not None and self.trials is not None:
            raise SteppeError("draws and trials are the same number: give one of them")
        if self.trials is not None and self.search is None:
            raise SteppeError("trials belong to a search: add --search tpe, or give --draws instead")
        if self.search is not None and self.count_given is None:
            raise SteppeError(f"how many? Add --{'trials' if self.search == 'tpe' else 'draws'} 20")
        if self.fixed and not self.kind:
            raise SteppeError("fixed names what a search leaves alone, and there is no search: add --draws 20")

    @property
    def count_given(self) -> int | None:
        """The number of draws or trials that was given."""
        return self.draws if self.draws is not None else self.trials

    @property
    def kind(self) -> SearchName | None:
        """The search, if there is one."""
        return self.search if self.search is not None else "random" if self.draws is not None else None

    @property
    def count(self) -> int:
        """How many choices of hyper-parameters each cell has."""
        return self.count_given or 1
