"""Climbing only every k-th step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from steppe.descents import Descent, Gradients, Perturbed
from steppe.memory import Start
from steppe.passes import OPTIONAL
from steppe.vectors import HALF, add_scaled, scale


class Reuse:
    """Climb every k-th step and re-use what the climb added: LookSAM (Liu et al. 2022).

    At the steps 0, k, 2k, … the wrapped descent hands down h as always, and the part of it that is orthogonal to
    g = ∇L(w) is remembered; at the steps between, one pass is enough:

        v = h − (⟨h, g⟩/‖g‖²) g          g + α (‖g‖/‖v‖) v

    with all inner products over all parameters together. What is re-used is this correction, not ε; none is after a
    step that was to climb while every radius was 0. The authors released no code; some ports take the norms a tensor at
    a time, and 10 for k.

    Args:
        every: k ≥ 1; 1 climbs at every step.
        alpha: α ≥ 0.
        descent: the descent at the steps that climb. It must leave ``gradients.clean`` as it is.
        shared: with an objective other than the mean loss, or a fraction of the batch, take the climb's gradient for
            g and save a pass; so too where ``descent`` is shared.

    Raises:
        ValueError: out of range, or the descent has a memory of its own.
    """

    keeps_gradient = True
    remembers: Mapping[str, Start] = {"correction": "zeros"}

    def __init__(
        self, every: int = 5, alpha: float = 0.7, descent: Descent | None = None, shared: bool = False
    ) -> None:
        if every < 1 or every != int(every):
            raise ValueError(f"every must be a whole number of at least 1, got {every}")
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
        self.every = int(every)
        self.alpha = alpha
        self.descent = descent or Perturbed()
        self.shared = shared or bool(getattr(self.descent, "shared", False))
        if getattr(self.descent, "remembers", {}):
            raise ValueError(f"{self.descent} has a memory of its own and cannot be re-used")

    def __getattr__(self, name: str) -> Any:
        if name in OPTIONAL:
            return getattr(self.descent, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def retreat(self) -> float:
        return float(getattr(self.descent, "retreat", 0.0))

    def climbs_at(self, step: int) -> bool:
        return step % self.every == 0

    def combine(self, gradients: Gradients) -> None:
        self.descent.combine(gradients)
        if self.every == 1:
            return
        inner, clean = gradients.inner, gradients.clean
        assert gradients.remember is not None
        correction = gradients.remember("correction")
        square = inner(clean, clean)
        parallel = inner(gradients.perturbed, clean) / torch.where(square == 0, 1.0, square)
        scale(clean, -parallel)
        torch._foreach_copy_(correction, gradients.perturbed)
        torch._foreach_add_(correction, clean)
        # Where nothing was climbed (a trust region in its first step), h is g but for rounding, whose direction is no
        # correction: v/‖v‖ would make a step of it.
        least = max(_rounding(dtype) for dtype in {t.dtype for t in correction})
        enough = inner(correction, correction) > least**2 * inner(gradients.perturbed, gradients.perturbed)
        scale(correction, enough.to(square.dtype))

    def skip(self, gradients: Gradients) -> None:
        """There was no climb where one was due, every radius being 0: then there is nothing to re-use."""
        if self.every > 1:
            assert gradients.remember is not None
            torch._foreach_zero_(gradients.remember("correction"))

    def resume(self, gradients: Gradients) -> None:
        """Overwrite ∇L(w), in ``gradients.perturbed``, by ∇L(w) + α (‖∇L(w)‖/‖v‖) v."""
        inner, gradient = gradients.inner, gradients.perturbed
        assert gradients.remember is not None
        correction = gradients.remember("correction")
        square = inner(correction, correction)
        ratio = (inner(gradient, gradient) / torch.where(square == 0, 1.0, square)).sqrt() * self.alpha
        add_scaled(gradient, correction, ratio)

    def __repr__(self) -> str:
        return f"Reuse(every={self.every}, alpha={self.alpha}, descent={self.descent}, shared={self.shared})"


def _rounding(dtype: torch.dtype) -> float:
    """The relative difference of two gradients that a direction can no longer be read off."""
    return (2 if dtype in HALF else 32) * torch.finfo(dtype).eps
