"""Which gradient is climbed, where one batch alone is not it: means over the steps, in front of a geometry.

Both wrap a geometry, so they combine with each: ``Friendly(Adaptive(0.01))``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steppe.geometries import Euclidean, Geometry, Leaves
from steppe.memory import Start
from steppe.passes import OPTIONAL


class _Around:
    """A geometry in front of another, whose optional members are its own."""

    remembers: Mapping[str, Start] = {"gradient": "zeros"}

    def __init__(self, geometry: Geometry | None) -> None:
        self.geometry = geometry or Euclidean()
        if getattr(self.geometry, "remembers", {}):
            raise ValueError(f"{self.geometry} has a memory of its own and cannot be wrapped once more")

    def __getattr__(self, name: str) -> Any:
        if name in ("needs_names", "measures", "disturbs", *OPTIONAL):
            return getattr(self.geometry, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _averaged(self, leaves: Leaves, weight: float) -> list[Tensor]:
        """The remembered gradient, moved by ``weight`` towards the new one; gradients of all steps in one scale."""
        if leaves.remember is None:
            raise RuntimeError("a gradient cannot be averaged over the steps without a memory: use SharpnessAware")
        leaves.unscale()
        if getattr(self.geometry, "squares", False) and not leaves.measured:
            leaves.measured = [gradient.clone() for gradient in leaves.gradients]
        mean = leaves.remember("gradient")
        torch._foreach_lerp_(mean, [g.to(m.dtype) for g, m in zip(leaves.gradients, mean, strict=True)], weight)
        return mean


class Friendly(_Around):
    """Climb the batch's own part of the gradient, without what all batches share: F-SAM (Li et al. 2024).

        m_t = λ m_{t−1} + (1 − λ) g_t,   m_0 = 0          d = g_t − σ m_t          ε = ρ P d / √(dᵀ P d)

    The authors' release subtracts m_{t−1} instead and starts with m_1 = g_1. At σ = 1 the first makes no difference,
    g_t − m_t = λ (g_t − m_{t−1}) having the same direction; the second fades as λᵗ.

    Args:
        geometry: P; Euclidean by default.
        sigma: σ ≥ 0; 0 is plain SAM. The release uses 1.
        decay: λ in [0, 1); the release's default is 0.9, its commands use 0.6 and 0.95.

    Raises:
        ValueError: out of range, or the geometry has a memory of its own.
    """

    def __init__(self, geometry: Geometry | None = None, sigma: float = 1.0, decay: float = 0.9) -> None:
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma must be at least 0 and finite, got {sigma}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        super().__init__(geometry)
        self.sigma = sigma
        self.decay = decay

    def direction(self, leaves: Leaves) -> Sequence[Tensor]:
        mean = self._averaged(leaves, 1 - self.decay)
        torch._foreach_add_(leaves.gradients, mean, alpha=-self.sigma)
        return self.geometry.direction(leaves)

    def __repr__(self) -> str:
        return f"Friendly({self.geometry}, sigma={self.sigma}, decay={self.decay})"


class Smoothed(_Around):
    """Climb an average of the steps' gradients, whose variance is smaller: VaSSO (Li and Giannakis 2023).

        d_t = (1 − θ) d_{t−1} + θ g_t,   d_0 = 0          ε = ρ P d_t / √(d_tᵀ P d_t)

    The authors' release starts with d_1 = g_1, which fades as (1 − θ)ᵗ.

    Args:
        geometry: P; Euclidean by default.
        theta: θ in (0, 1], the weight of the new gradient; 1 is plain SAM. The release uses 0.9.

    Raises:
        ValueError: out of range, or the geometry has a memory of its own.
    """

    def __init__(self, geometry: Geometry | None = None, theta: float = 0.9) -> None:
        if not 0 < theta <= 1:
            raise ValueError(f"theta must be larger than 0 and at most 1, got {theta}")
        super().__init__(geometry)
        self.theta = theta

    def direction(self, leaves: Leaves) -> Sequence[Tensor]:
        torch._foreach_copy_(leaves.gradients, self._averaged(leaves, self.theta))
        return self.geometry.direction(leaves)

    def __repr__(self) -> str:
        return f"Smoothed({self.geometry}, theta={self.theta})"
