"""Which shape the neighbourhood has: from a gradient g to the direction of the climb.

Every geometry here is a positive diagonal P. The climb is the maximiser of ⟨g, ε⟩ on the ball εᵀP⁻¹ε ≤ ρ²,

    ε = ρ · P g / √(gᵀ P g)

so a geometry has to do two things: turn g into P g, and give the norm √(gᵀ P g).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from steppe.displacement import HALF


@dataclass
class Leaves:
    """Parallel lists over the perturbed parameters of one parameter group: what a geometry works on.

    Attributes:
        names: the parameters' names in the model; ``None`` where the optimizer was given neither ``model=`` nor
            named parameters.
        weights: w. To be read, not written.
        gradients: the climb's gradient a, in the parameters' ``.grad``. To be overwritten by the direction P a.
        scratch: persistent tensors shaped like the weights, free to be overwritten.
        inverse_scale: 1/S as a 0-dim tensor where the gradients are S times too large (a ``GradScaler``), else
            ``None``. Only a geometry that is not homogeneous in g needs it.
    """

    names: list[str | None]
    weights: list[Tensor]
    gradients: list[Tensor]
    scratch: list[Tensor]
    inverse_scale: Tensor | None = None


@runtime_checkable
class Geometry(Protocol):
    """The second of the four parts. Write your own by giving a class this method.

    It may also have ``needs_names: bool`` (default false): whether ``Leaves.names`` must all be known, which takes
    ``model=`` or named parameters.
    """

    def direction(self, leaves: Leaves) -> Sequence[Tensor]:
        """Overwrite ``leaves.gradients`` by P g and return, a parameter each, the 0-dim norm √(gᵀ P g)."""


class Euclidean:
    """P = 1: the ball ‖ε‖ ≤ ρ of SAM (Foret et al. 2021)."""

    def direction(self, leaves: Leaves) -> Sequence[Tensor]:
        return norms(leaves.gradients)

    def __repr__(self) -> str:
        return "Euclidean()"


class Adaptive:
    """P = T², T = |w| + η: the ball ‖ε / T‖ ≤ ρ of ASAM, invariant to re-scaling the weights (Kwon et al. 2021).

    Args:
        eta: η ≥ 0. The paper uses 0.01; η = 0 is the widespread variant, and TRAM's.
        weights_only: T on the parameters that have ``weight`` in their name, 1 on all others: the authors' rule
            in their released code. Needs names (``model=``, or named parameters in the base optimizer).

    Raises:
        ValueError: η is negative or not a number.
    """

    def __init__(self, eta: float = 0.01, weights_only: bool = False) -> None:
        if not eta >= 0:
            raise ValueError(f"eta must be at least 0, got {eta}")
        self.eta = eta
        self.weights_only = weights_only

    @property
    def needs_names(self) -> bool:
        return self.weights_only

    def direction(self, leaves: Leaves) -> Sequence[Tensor]:
        chosen = list(range(len(leaves.weights)))
        if self.weights_only:
            chosen = [i for i, name in enumerate(leaves.names) if name is not None and "weight" in name]
        if not chosen:
            return norms(leaves.gradients)
        weights = [leaves.weights[i] for i in chosen]
        gradients = [leaves.gradients[i] for i in chosen]
        scales = [leaves.scratch[i] for i in chosen]
        torch._foreach_copy_(scales, weights)
        torch._foreach_abs_(scales)
        if self.eta:
            torch._foreach_add_(scales, self.eta)
        torch._foreach_mul_(gradients, scales)
        lengths = norms(leaves.gradients)  # of T g: √(gᵀ T² g)
        torch._foreach_mul_(gradients, scales)
        return lengths

    def __repr__(self) -> str:
        return f"Adaptive(eta={self.eta}, weights_only={self.weights_only})"


def norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """The l2 norm of each tensor, 0-dim; half precision is summed in float32, where its squares do not overflow."""
    if all(t.dtype not in HALF for t in tensors):
        return torch._foreach_norm(tensors, 2)
    return [torch.linalg.vector_norm(t, dtype=torch.float32 if t.dtype in HALF else None) for t in tensors]
