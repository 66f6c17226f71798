"""The named methods: each chooses four parts. Any part, and ``model=``, may be given by keyword instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from steppe.descents import GradientMatching, SurrogateGap
from steppe.errors import unknown_name
from steppe.estimates import Friendly, Smoothed
from steppe.geometries import Adaptive, Fisher
from steppe.objectives import DomainVariance
from steppe.radii import Radius
from steppe.reuse import Reuse
from steppe.sharpness import SharpnessAware
from steppe.trust.divergences import Divergence
from steppe.trust.fisher import NoisedFisher
from steppe.trust.references import Reference
from steppe.trust.region import TrustRegion

OPTIONS = tuple(name for name in inspect.signature(SharpnessAware).parameters if name != "base")
"""What each method takes by keyword beside its own arguments."""


def SAM(base: Optimizer, rho: float | Radius = 0.05, **parts: Any) -> SharpnessAware:
    """Sharpness-aware minimization (Foret et al. 2021): ε = ρ g/‖g‖, descend with ∇L(w + ε).

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ.
        **parts: ``objective``, ``geometry``, ``radius`` (in place of ``rho``), ``descent``, ``model`` and the other
            options of :class:`~steppe.sharpness.SharpnessAware`.
    """
    return _made(base, {"radius": rho, **parts})


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
    return _made(base, {"geometry": Adaptive(eta, weights_only), "radius": rho, **parts})


def FisherSAM(base: Optimizer, gamma: float | Radius = 0.1, eta: float = 0.1, **parts: Any) -> SharpnessAware:
    """Fisher SAM (Kim et al. 2022): ε = γ F⁻¹ g/√(gᵀ F⁻¹ g) with F⁻¹ = 1/(1 + η g²).

    Args:
        base: the optimizer that makes the step.
        gamma: the radius γ.
        eta: η.
        **parts: as in :func:`SAM`.
    """
    return _made(base, {"geometry": Fisher(eta), "radius": gamma, **parts})


def GSAM(base: Optimizer, rho: float | Radius = 0.05, alpha: float = 0.4, **parts: Any) -> SharpnessAware:
    """Surrogate-gap guided SAM (Zhuang et al. 2022): descend with g_p − α g_⊥.

    Args:
        base: the optimizer that makes the step.
        rho: the radius; constant where a number, the paper's schedule with :class:`~steppe.radii.Proportional`.
        alpha: α; the paper uses 0.1 to 0.4.
        **parts: as in :func:`SAM`.
    """
    return _made(base, {"radius": rho, "descent": SurrogateGap(alpha), **parts})


def SAGM(base: Optimizer, rho: float | Radius = 0.05, alpha: float = 0.001, **parts: Any) -> SharpnessAware:
    """Sharpness-aware gradient matching (Wang et al. 2023): ε = ρ g/‖g‖ − α g, descend with ½ (g + ∇L(w + ε)).

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ.
        alpha: α.
        **parts: as in :func:`SAM`.
    """
    return _made(base, {"radius": rho, "descent": GradientMatching(alpha), **parts})


def DISAM(
    base: Optimizer, rho: float | Radius = 0.05, lam: float = 0.1, num_domains: int | None = None, **parts: Any
) -> SharpnessAware:
    """Domain-inspired SAM (Zhang et al. 2024): climb L − λ Var{L_i}, descend with ∇L(w + ε).

    ``DISAM(base, descent=GradientMatching(0.001))`` is DISAM + SAGM.

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ; the paper's text uses 0.05, its appendix 0.5 (PACS, VLCS, OfficeHome, DomainNet) and
            0.01 (TerraIncognita).
        lam: λ; the paper uses 0.1 (0.2 on TerraIncognita).
        num_domains: for several ranks that climb together, see :class:`~steppe.objectives.DomainVariance`.
        **parts: as in :func:`SAM`.
    """
    return _made(base, {"objective": DomainVariance(lam, num_domains), "radius": rho, **parts})


def TRAM(
    base: Optimizer,
    model: nn.Module,
    reference: str | Reference = "previous",
    divergence: str | Divergence = "kl",
    *,
    max_radius: float | None = None,
    sigma: float = 0.1,
    decay: float = 0.999,
    embedding: nn.Module | None = None,
    reference_eval: bool = False,
    **parts: Any,
) -> SharpnessAware:
    """Trust-region aware minimization (Sherborne et al. 2024, Eq. 7): ε = d T² g/‖T g‖, T = |w|, d a divergence.

    The closure is the same as for SAM: a forward hook on ``model`` sees inputs and logits. The authors' release
    leaves the factor g out of ε, and divides KL by the number of classes and once more by the batch; this is the
    paper's equation.

    Args:
        base: the optimizer that makes the step.
        model: the model that the closure calls.
        reference: ``"previous"`` θ_{t−1}, ``"initial"`` θ_0, ``"ema"``, ``"noise"``.
        divergence: ``"kl"`` KL(reference ‖ current), ``"reverse"``, ``"symmetric"``, ``"mmd"``, ``"l2"``, ``"renyi"``.
        max_radius, sigma, decay, embedding, reference_eval: see :class:`~steppe.trust.region.TrustRegion`, which takes
            more for language models and segmentation: ``TRAM(base, model, radius=TrustRegion(model, …))``.
        **parts: as in :func:`SAM`.
    """
    region: Any = parts.get("radius")
    if region is None:
        region = TrustRegion(
            model,
            reference,
            divergence,
            max_radius=max_radius,
            sigma=sigma,
            decay=decay,
            embedding=embedding,
            reference_eval=reference_eval,
        )
    return _made(base, {"geometry": Adaptive(eta=0.0), "model": model, **parts, "radius": region})


def TRAMFisher(
    base: Optimizer,
    model: nn.Module,
    sigma: float = 0.1,
    gamma: float | Radius = 0.1,
    eta: float = 0.1,
    *,
    shared_pass: bool = False,
    embedding: nn.Module | None = None,
    **parts: Any,
) -> SharpnessAware:
    """TRAM-Fisher (Sherborne et al. 2024): Fisher SAM's climb with the Fisher information measured at x + z.

    Args:
        base: the optimizer that makes the step.
        model: the model that the closure calls.
        sigma: σ of z ~ N(0, σ²), on the inputs, or on the embeddings of token ids.
        gamma: the radius γ.
        eta: η.
        shared_pass: two passes instead of three, see :class:`~steppe.trust.fisher.NoisedFisher`.
        embedding: what is noised where the inputs are token ids (default: found in the model).
        **parts: as in :func:`SAM`.
    """
    geometry = NoisedFisher(model, eta, sigma, shared_pass, embedding)
    return _made(base, {"geometry": geometry, "radius": gamma, "model": model, **parts})


def FriendlySAM(
    base: Optimizer, rho: float | Radius = 0.05, sigma: float = 1.0, decay: float = 0.9, **parts: Any
) -> SharpnessAware:
    """Friendly SAM (Li et al. 2024): climb g − σ m, m the mean of the steps' gradients.

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ.
        sigma: σ.
        decay: λ of the mean.
        **parts: as in :func:`SAM`.
    """
    return _made(base, {"geometry": Friendly(sigma=sigma, decay=decay), "radius": rho, **parts})


def VaSSO(base: Optimizer, rho: float | Radius = 0.05, theta: float = 0.9, **parts: Any) -> SharpnessAware:
    """Variance-suppressed sharpness-aware optimization (Li and Giannakis 2023): climb the mean of the steps' gradients.

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ.
        theta: θ, the weight of the new gradient.
        **parts: as in :func:`SAM`.
    """
    return _made(base, {"geometry": Smoothed(theta=theta), "radius": rho, **parts})


def LookSAM(
    base: Optimizer, rho: float | Radius = 0.05, every: int = 5, alpha: float = 0.7, **parts: Any
) -> SharpnessAware:
    """LookSAM (Liu et al. 2022): climb every k-th step, and re-use its correction of the gradient between.

    Args:
        base: the optimizer that makes the step.
        rho: the radius ρ.
        every: k.
        alpha: α.
        **parts: as in :func:`SAM`.
    """
    return _made(base, {"radius": rho, "descent": Reuse(every, alpha), **parts})


def _made(base: Optimizer, parts: Mapping[str, Any]) -> SharpnessAware:
    if not isinstance(base, Optimizer):
        raise TypeError(
            f"base must be a torch.optim.Optimizer instance, got {type(base).__name__}: make it first, as in "
            "steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1))"
        )
    for name in parts:
        if name not in OPTIONS:
            raise TypeError(str(unknown_name("argument", name, OPTIONS)))
    return SharpnessAware(base, **parts)
