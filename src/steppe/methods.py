"""The named methods: each chooses four parts. Any part, and ``model=``, may be given by keyword instead."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from steppe.descents import GradientMatching, SurrogateGap
from steppe.geometries import Adaptive
from steppe.objectives import DomainVariance
from steppe.radii import Radius
from steppe.sharpness import SharpnessAware


def SAM(base: Optimizer, rho: float | Radius = 0.05, **parts: Any) -> SharpnessAware:
    """Sharpness-aware minimization (Foret et al. 2021): ε = ρ g/‖g‖, descend with ∇L(w + ε).

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ.
        **parts: ``objective``, ``geometry``, ``radius`` (in place of ``rho``), ``descent``, ``model`` and the other
            options of :class:`~steppe.sharpness.SharpnessAware`.
    """
    return SharpnessAware(base, **{"radius": rho, **parts})


def ASAM(
    base: Optimizer, rho: float | Radius = 0.5, eta: float = 0.01, weights_only: bool = False, **parts: Any
) -> SharpnessAware:
    """Adaptive SAM (Kwon et al. 2021): ε = ρ T² g/‖T g‖ with T = |w| + η.

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ.
        eta: η.
        weights_only: the authors' rule, T = 1 on biases and whatever has no ``weight`` in its name; needs ``model=``.
        **parts: as in :func:`SAM`.
    """
    return SharpnessAware(base, **{"geometry": Adaptive(eta, weights_only), "radius": rho, **parts})


def GSAM(base: Optimizer, rho: float | Radius = 0.05, alpha: float = 0.4, **parts: Any) -> SharpnessAware:
    """Surrogate-gap guided SAM (Zhuang et al. 2022): descend with g_p − α g_⊥.

    Args:
        base: the optimizer that makes the step.
        rho: the radius; constant where a number, the paper's schedule with :class:`~steppe.radii.Proportional`.
        alpha: α; the paper uses 0.1 to 0.4.
        **parts: as in :func:`SAM`.
    """
    return SharpnessAware(base, **{"radius": rho, "descent": SurrogateGap(alpha), **parts})


def SAGM(base: Optimizer, rho: float | Radius = 0.05, alpha: float = 0.001, **parts: Any) -> SharpnessAware:
    """Sharpness-aware gradient matching (Wang et al. 2023): ε = ρ g/‖g‖ − α g, descend with ½ (g + ∇L(w + ε)).

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ.
        alpha: α.
        **parts: as in :func:`SAM`.
    """
    return SharpnessAware(base, **{"radius": rho, "descent": GradientMatching(alpha), **parts})


def DISAM(base: Optimizer, rho: float | Radius = 0.05, lam: float = 0.1, **parts: Any) -> SharpnessAware:
    """Domain-inspired SAM (Zhang et al. 2024): climb L − λ Var{L_i}, descend with ∇L(w + ε).

    ``DISAM(base, descent=GradientMatching(0.001))`` is DISAM + SAGM.

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ; the paper's text uses 0.05, its appendix 0.5 (PACS, VLCS, OfficeHome, DomainNet) and
            0.01 (TerraIncognita).
        lam: λ; the paper uses 0.1 (0.2 on TerraIncognita).
        **parts: as in :func:`SAM`.
    """
    return SharpnessAware(base, **{"objective": DomainVariance(lam), "radius": rho, **parts})
