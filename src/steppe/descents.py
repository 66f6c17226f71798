"""Which gradient the base optimizer gets, once the gradient at w + ε is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from steppe.vectors import scale


@dataclass
class Gradients:
    """What a descent works on: parallel lists over all parameters (this rank's shards, where they are sharded).

    Attributes:
        perturbed: g_p = ∇L(w + ε). To be overwritten by what the base optimizer is to get.
        clean: g = ∇L(w); empty unless the descent keeps it. May be overwritten, but by a descent that goes into
            :class:`~steppe.reuse.Reuse`, which reads it afterwards.
        inner: the inner product ⟨x, y⟩ of two such lists as a 0-dim tensor, over all parameters.
        remember: gives the tensors that the descent remembers under a name of its ``remembers``, to be read and
            overwritten; ``None`` where it has none.
    """

    perturbed: list[Tensor]
    clean: list[Tensor]
    inner: Callable[[list[Tensor], list[Tensor]], Tensor]
    remember: Callable[[str], list[Tensor]] | None = None


@runtime_checkable
class Descent(Protocol):
    """The fourth of the four parts. Write your own by giving a class this method.

    It may also have

    - ``keeps_gradient: bool`` (default false): whether g = ∇L(w) is needed after the climb, which takes one more copy
      of the weights' size;
    - ``shared: bool`` (default false): whether the climb's gradient may stand for g where the objective is not the
      plain mean loss, which saves a pass;
    - ``retreat: float`` (default 0): α of a perturbation ε − α g; needs ``keeps_gradient``;
    - ``climbs_at(step) -> bool`` (default true): whether step number ``step`` (from 0) climbs at all, and
      ``resume(gradients)``, called with ∇L(w) as ``gradients.perturbed`` at the steps that do not;
    - ``skip(gradients)``, called with ∇L(w) as ``gradients.perturbed``, which is handed down as it is, at a step that
      would climb if not every radius were 0;
    - what every part may have (:mod:`steppe.parts`): a memory and a view of the passes.
    """

    def combine(self, gradients: Gradients) -> None:
        """Overwrite ``gradients.perturbed`` by what the base optimizer is to get."""


class Perturbed:
    """g_p = ∇L(w + ε) as it is: SAM's descent (Foret et al. 2021)."""

    def combine(self, gradients: Gradients) -> None:
        """Leaves g_p as it is."""
        return None

    def __repr__(self) -> str:
        return "Perturbed()"


class SurrogateGap:
    """g_p − α g_⊥: GSAM's descent, which also closes the gap between L(w + ε) and L(w) (Zhuang et al. 2022, Alg. 1).

        g_⊥ = g − (⟨g, g_p⟩ / ‖g_p‖²) g_p

    is the part of g = ∇L(w) orthogonal to g_p = ∇L(w + ε), with inner products over all parameters together;
    so what is handed down is (1 + α ⟨g, g_p⟩/‖g_p‖²) g_p − α g. Where g_p = 0 it is −α g.

    Args:
        alpha: α ≥ 0; the paper uses 0.1 to 0.4.
        shared: with an objective other than the mean loss, take its gradient for g and save a pass.

    Raises:
        ValueError: α is negative or not a number.
    """

    keeps_gradient = True

    def __init__(self, alpha: float = 0.4, shared: bool = False) -> None:
        self.alpha = _check_alpha(alpha)
        self.shared = shared

    def combine(self, gradients: Gradients) -> None:
        perturbed, clean, inner = gradients.perturbed, gradients.clean, gradients.inner
        square = inner(perturbed, perturbed)
        # Dividing first and then masking would turn 0/0 into NaN; a g_p that is not finite must stay visible.
        parallel = inner(clean, perturbed) / torch.where(square == 0, 1.0, square)
        scale(perturbed, 1 + self.alpha * parallel)
        torch._foreach_add_(perturbed, clean, alpha=-self.alpha)

    def __repr__(self) -> str:
        return f"SurrogateGap(alpha={self.alpha}, shared={self.shared})"


class GradientMatching:
    """½ (g + g_p) with g_p = ∇L(w + ε − α g): SAGM, which aligns the two gradients (Wang et al. 2023, Eq. 8).

    The paper sums the two gradients, its released code halves the sum; halved, a learning rate means the same as
    in SAM.

    Args:
        alpha: α ≥ 0, how far the perturbed point is drawn back along g; the paper uses 0.001.
        shared: with an objective other than the mean loss, take its gradient for g and save a pass.

    Raises:
        ValueError: α is negative or not a number.
    """

    keeps_gradient = True

    def __init__(self, alpha: float = 0.001, shared: bool = False) -> None:
        self.alpha = _check_alpha(alpha)
        self.shared = shared

    @property
    def retreat(self) -> float:
        return self.alpha

    def combine(self, gradients: Gradients) -> None:
        torch._foreach_lerp_(gradients.perturbed, gradients.clean, 0.5)

    def __repr__(self) -> str:
        return f"GradientMatching(alpha={self.alpha}, shared={self.shared})"


def _check_alpha(alpha: float) -> float:
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
    return alpha
