"""Penalties whose weight jumps after a number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steppe.penalties.penalty import Penalty, check_at_least_zero


class AnnealedPenalty(Penalty):
    """A penalty with one weight in the first ``anneal_steps`` steps and another from then on.

    Adam divides by the size of past gradients, so it does not like the jump. DomainBed starts a new Adam there;
    :attr:`just_annealed` says when::

        optimizer.step(closure)
        penalty.step()
        if penalty.just_annealed:
            optimizer.state.clear()  # Adam and its kin begin anew, learning rate and groups stay

    Args:
        weight: from step ``anneal_steps`` on, counted from 0.
        weight_before: in the steps before that.
        anneal_steps: how many steps those are; 0 for none.

    Attributes:
        current_weight: that of the next step, for ``compute``.

    Raises:
        ValueError: a weight or the number of steps is negative.
    """

    def __init__(self, *, weight: float, weight_before: float, anneal_steps: int) -> None:
        super().__init__()
        check_at_least_zero("weight", weight)
        check_at_least_zero("weight_before", weight_before)
        if anneal_steps < 0 or anneal_steps != int(anneal_steps):
            raise ValueError(f"anneal_steps must be a whole number of at least 0, got {anneal_steps}")
        self.weight = weight
        self.weight_before = weight_before
        self.anneal_steps = int(anneal_steps)
        self._count(0)

    @property
    def steps(self) -> int:
        """How many steps are made."""
        return int(self.state["steps"])

    @property
    def just_annealed(self) -> bool:
        """Whether the next step is the first with the full weight (never, where there was no step before it)."""
        return 0 < self.steps == self.anneal_steps

    def step(self) -> None:
        super().step()
        self._count(self.steps + 1)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._count(self.steps)

    def _count(self, steps: int) -> None:
        self.state["steps"] = steps
        # Kept, not computed where it is used: a compiled call is then compiled anew at the jump, not at every step.
        self.current_weight = self.weight if steps >= self.anneal_steps else self.weight_before
