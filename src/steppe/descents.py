"""Which gradient the base optimizer gets, once the gradient at w + ε is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Inner = Callable[[list[Tensor], list[Tensor]], Tensor]


@runtime_checkable
class Descent(Protocol):
    """The fourth of the four parts. Write your own by giving a class this method.

    It may also have

    - ``keeps_gradient: bool`` (default false): whether g = ∇L(w) is needed after the climb, which takes one more copy
      of the weights' size;
    - ``shared: bool`` (default false): whether the climb's gradient may stand for g where the objective is not the
      plain mean loss, which saves a pass;
    - ``retreat: float`` (default 0): α of a perturbation ε − α g; needs ``keeps_gradient``.
    """

    def combine(self, perturbed: list[Tensor], gradient: list[Tensor], inner: Inner) -> None:
        """Overwrite ``perturbed``, the gradients at w + ε, by what the base optimizer is to get.

        Args:
            perturbed: g_p = ∇L(w + ε), a tensor a parameter.
            gradient: g = ∇L(w), parallel to it; empty unless ``keeps_gradient``.
            inner: the inner product ⟨x, y⟩ of two such lists as a 0-dim tensor, over *all* parameters.
        """


class Perturbed:
    """g_p = ∇L(w + ε) as it is: SAM's descent (Foret et al. 2021)."""

    def combine(self, perturbed: list[Tensor], gradient: list[Tensor], inner: Inner) -> None:
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

    def combine(self, perturbed: list[Tensor], gradient: list[Tensor], inner: Inner) -> None:
        square = inner(perturbed, perturbed)
        # Dividing first and then masking would turn 0/0 into NaN; a g_p that is not finite must stay visible.
        parallel = inner(gradient, perturbed) / torch.where(square == 0, 1.0, square)
        torch._foreach_mul_(perturbed, 1 + self.alpha * parallel)
        torch._foreach_add_(perturbed, gradient, alpha=-self.alpha)

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

    def combine(self, perturbed: list[Tensor], gradient: list[Tensor], inner: Inner) -> None:
        torch._foreach_lerp_(perturbed, gradient, 0.5)

    def __repr__(self) -> str:
        return f"GradientMatching(alpha={self.alpha}, shared={self.shared})"


def _check_alpha(alpha: float) -> float:
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
    return alpha
