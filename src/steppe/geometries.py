"""Which shape the neighbourhood has: from a gradient g to the direction of the climb.

Every geometry here is a positive diagonal P. The climb is the maximiser of ⟨g, ε⟩ on the ball εᵀP⁻¹ε ≤ ρ²,

    ε = ρ · P g / √(gᵀ P g)

so a geometry has to do two things: turn g into P g, and give the norm √(gᵀ P g).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from steppe.vectors import dot, norms

BLOCK = 2**19
"""Numbers that a CPU's caches hold of each of a few tensors."""


@dataclass
class Leaves:
    """Parallel lists over the perturbed parameters of one parameter group: what a geometry works on.

    Where parameters are sharded (FSDP2) these are the shards that this rank holds.

    Attributes:
        names: the parameters' names in the model; ``None`` where the optimizer was given neither ``model=`` nor
            named parameters.
        weights: w. To be read, not written.
        gradients: the climb's gradient a, in the parameters' ``.grad``. To be overwritten by the direction P a.
        scratch: persistent tensors shaped like the weights, free to be overwritten.
        inverse_scale: 1/S as a 0-dim tensor where the gradients are S times too large (a ``GradScaler``), else
            ``None``. Only a geometry that is not homogeneous in g needs it.
        measured: the gradient of the measuring pass; empty unless the geometry asks for one (``measures``). It may
            lie in ``scratch``: what is written there overwrites it.
        remember: gives the tensors that the geometry remembers under a name of its ``remembers``, to be read and
            overwritten; ``None`` where it has none.
    """

    names: list[str | None]
    weights: list[Tensor]
    gradients: list[Tensor]
    scratch: list[Tensor]
    inverse_scale: Tensor | None = None
    measured: list[Tensor] = field(default_factory=list)
    remember: Callable[[str], list[Tensor]] | None = None

    def unscale(self) -> None:
        """Divide the gradients by the scaler's S, for what adds gradients of different steps."""
        for tensors in (self.gradients, self.measured):
            if self.inverse_scale is not None and tensors:
                for gradient in tensors:
                    gradient.mul_(self.inverse_scale.to(gradient.device))
        self.inverse_scale = None

    def blocks(self) -> Iterator[Leaves]:
        """The leaves in portions to work through one by one.

        On a CPU some at a time, which stay in its caches from one operation to the next (half the time for Fisher's
        eight); elsewhere all at once, for as few launches as possible.
        """
        if any(weight.device.type != "cpu" for weight in self.weights):
            yield self
            return
        begin = size = 0
        for end, weight in enumerate(self.weights, start=1):
            size += weight.numel()
            if size >= BLOCK or end == len(self.weights):
                yield self._part(begin, end)
                begin, size = end, 0

    def _part(self, begin: int, end: int) -> Leaves:
        return Leaves(
            self.names[begin:end],
            self.weights[begin:end],
            self.gradients[begin:end],
            self.scratch[begin:end],
            self.inverse_scale,
            self.measured[begin:end],
        )


@runtime_checkable
class Geometry(Protocol):
    """The second of the four parts. Write your own by giving a class this method.

    It may also have

    - ``needs_names: bool`` (default false): whether ``Leaves.names`` must all be known, which takes ``model=`` or
      named parameters;
    - ``measures: bool`` (default false): whether one more pass at w is made before the climb's, whose gradient it
      finds in ``Leaves.measured``;
    - ``disturbs: bool`` (default false): whether it changes what the model sees in the climb's pass, whose gradient
      then is not ∇L(w);
    - ``squares: bool`` (default false): whether P depends on the batch's gradient, to be found in ``Leaves.measured``
      where what is climbed is another one (:mod:`steppe.estimates`);
    - what every part may have (:mod:`steppe.parts`): a memory and a view of the passes.
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
        ValueError: η is negative, infinite or not a number.
    """

    def __init__(self, eta: float = 0.01, weights_only: bool = False) -> None:
        if not 0 <= eta < float("inf"):
            raise ValueError(f"eta must be at least 0 and finite, got {eta}")
        self.eta = eta
        self.weights_only = weights_only

    @property
    def needs_names(self) -> bool:
        return self.weights_only

    def direction(self, leaves: Leaves) -> Sequence[Tensor]:
        return [length for block in leaves.blocks() for length in self._direction(block)]

    def _direction(self, leaves: Leaves) -> Sequence[Tensor]:
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


class Fisher:
    """P = F⁻¹ = 1 / (1 + η f), f the diagonal of the Fisher information: Fisher SAM (Kim et al. 2022).

        ε = γ F⁻¹ g / √(gᵀ F⁻¹ g)        f = g², the square of the batch's gradient

    so the neighbourhood is narrow where the model's output is sensitive. There is no release by the authors. f is not
    homogeneous in g: it takes the unscaled gradient of the whole batch. With another objective than the mean loss g is
    the gradient that is climbed, in f too: before DISAM f = a², a = ∇(L − λ Var{L_i}), which saves a pass for ∇L(w).

    Args:
        eta: η ≥ 0; the paper uses 0.1.

    Raises:
        ValueError: η is negative, infinite or not a number.
    """

    squares = True

    def __init__(self, eta: float = 0.1) -> None:
        if not 0 <= eta < float("inf"):
            raise ValueError(f"eta must be at least 0 and finite, got {eta}")
        self.eta = eta

    def direction(self, leaves: Leaves) -> Sequence[Tensor]:
        leaves.unscale()
        return [length for block in leaves.blocks() for length in self._direction(block)]

    def _direction(self, leaves: Leaves) -> Sequence[Tensor]:
        gradients, fisher = leaves.gradients, leaves.scratch
        torch._foreach_copy_(fisher, leaves.measured or gradients)
        torch._foreach_mul_(fisher, fisher)
        torch._foreach_mul_(fisher, self.eta)
        torch._foreach_add_(fisher, 1.0)
        if all(g.device.type == "cpu" for g in gradients):  # where roots and divisions cost, not launches
            torch._foreach_reciprocal_(fisher)
            torch._foreach_mul_(fisher, gradients)
            squares = [dot(g, d) for g, d in zip(gradients, fisher, strict=True)]
            torch._foreach_copy_(gradients, fisher)
            return torch._foreach_sqrt(squares)
        torch._foreach_sqrt_(fisher)  # √F; twice a division by it, and the norm in between
        torch._foreach_div_(gradients, fisher)
        lengths = norms(gradients)  # of F^(−1/2) g: √(gᵀ F⁻¹ g)
        torch._foreach_div_(gradients, fisher)
        return lengths

    def __repr__(self) -> str:
        return f"Fisher(eta={self.eta})"
