"""From the losses of the samples to the loss whose gradient a pass needs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from steppe.objectives import Objective, reweighted_mean
from steppe.replicas import Replicas
from steppe.vectors import widen

Accumulate = Literal["each", "exact"]


class Weighing:
    """Weighs the losses of one step's passes.

    Args:
        objective: what is climbed.
        accumulate: how several micro-batches in one pass make an objective: ``"each"`` has its own; ``"exact"``, the
            objective is that of all of them together, whose losses a survey has seen before.

    Raises:
        ValueError: ``accumulate`` is neither.
    """

    def __init__(self, objective: Objective, accumulate: Accumulate) -> None:
        if accumulate not in ("each", "exact"):
            raise ValueError(f"accumulate must be 'each' or 'exact', got {accumulate!r}")
        self._objective = objective
        self.exact = accumulate == "exact"
        self.forget()

    def forget(self) -> None:
        """A new step, or a new part of it."""
        self._surveyed: list[tuple[Tensor, Tensor | None]] = []
        self._coefficients: Tensor | None = None
        self._taken = 0

    def surveyed(self, losses: Tensor, domains: Tensor | None) -> Tensor:
        """Note the losses of a micro-batch. What is returned has their mean's value and no gradient for the model."""
        self._surveyed.append((widen(losses.detach()).clone(), domains))
        return losses.detach().mean().requires_grad_()

    def climbed(self, losses: Tensor, domains: Tensor | None, ranks: Replicas, *, together: bool) -> Tensor:
        """The mean loss, with the gradient of the objective.

        Args:
            losses: of a (micro-)batch, ``[N]``.
            domains: of each sample.
            ranks: that train together.
            together: whether they climb on one joined batch.

        Raises:
            RuntimeError: the micro-batches are not those of the survey.
        """
        if not self.exact:
            # Losses of domains that are close would cancel in half precision.
            return reweighted_mean(losses, self._coefficients_of(widen(losses.detach()), domains, ranks, together))
        if self._coefficients is None:
            self._coefficients = self._joined(ranks, together)
        n, total = losses.numel(), self._coefficients.numel()
        coefficients = self._coefficients[self._taken : self._taken + n]
        self._taken += n
        if coefficients.numel() != n:
            raise RuntimeError(f"accumulate='exact': the survey saw {total} samples, the climb sees more")
        # The caller weighs a micro-batch by n/N (1/k where they are equal), which the coefficients contain already.
        return reweighted_mean(losses, coefficients * (total / n))

    def finish(self) -> None:
        """Raises ``RuntimeError`` where the climb's pass saw fewer samples than the survey."""
        if self._coefficients is not None and self._taken != self._coefficients.numel():
            raise RuntimeError(
                f"accumulate='exact': the survey saw {self._coefficients.numel()} samples, the climb {self._taken}"
            )

    @staticmethod
    def mean(losses: Tensor, ranks: Replicas) -> Tensor:
        """The mean loss, with a gradient that the ranks' averaging turns into that of the joined batch."""
        weight = ranks.weight(losses.numel(), losses) if losses.requires_grad else None
        if weight is None:
            return losses.mean()
        return reweighted_mean(losses, (weight / losses.numel()).expand_as(losses))

    def _joined(self, ranks: Replicas, together: bool) -> Tensor:
        if not self._surveyed:
            raise RuntimeError(
                "accumulate='exact' needs the losses of all micro-batches before the first gradient: make a pass "
                "inside `with optimizer.surveying():` first, calling optimizer.objective(losses, domain) for each"
            )
        losses = torch.cat([losses.reshape(-1) for losses, _ in self._surveyed])
        found: list[Any] = [domains for _, domains in self._surveyed]
        domains = None if any(d is None for d in found) else torch.cat([d.to(losses.device) for d in found])
        return self._coefficients_of(losses, domains, ranks, together)

    def _coefficients_of(self, losses: Tensor, domains: Tensor | None, ranks: Replicas, together: bool) -> Tensor:
        if not together or ranks.world == 1:
            return self._objective.coefficients(losses, domains)
        joint = getattr(self._objective, "joint_coefficients", None)
        if joint is None:
            raise TypeError(
                f"{self._objective} has no joint_coefficients and cannot be climbed by several ranks together: use "
                "global_ascent=False"
            )
        coefficients: Tensor = joint(losses, domains, ranks) * ranks.world  # the ranks' gradients will be averaged
        return coefficients
