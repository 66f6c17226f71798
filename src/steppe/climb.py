"""The climb: from the gradients in ``.grad`` to weights at w + ε."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steppe.displacement import HALF, Displacement, widen
from steppe.geometries import Geometry, Leaves, norms

Group = tuple[Mapping[str, Any], float | Tensor]


class Climb:
    """Computes ε and holds the weights at w + ε until :meth:`restore`.

        ε = ρ P a / √(aᵀ P a) − α g

    with one norm over all perturbed parameters together, ρ a group's own, and the last term only for a descent that
    retreats.
    """

    def __init__(self, climb_dtype: torch.dtype | None) -> None:
        self._displacement = Displacement(climb_dtype)
        self._norm: Tensor | None = None
        self._inverse_scale: Tensor | None = None
        self._radii: list[float | Tensor] = []
        self._rounding: dict[str, Tensor] = {}
        self._checked_rounding = climb_dtype is not None
        self.dtype = climb_dtype

    @torch.no_grad()
    def to(
        self,
        groups: Sequence[Group],
        geometry: Geometry,
        *,
        names: Mapping[Tensor, str],
        retreat: float,
        gradient: Mapping[Tensor, Tensor],
        inverse_scale: Tensor | None,
        diagnose: bool,
    ) -> None:
        """Go to w + ε. The gradients in ``.grad`` are overwritten.

        Args:
            groups: every parameter group with its radius ρ; a plain 0 leaves a group out.
            geometry: P.
            names: the parameters' names, as far as known.
            retreat: α.
            gradient: g, read only where α is not 0; what has none counts as 0.
            inverse_scale: 1/S where the gradients are scaled by S.
            diagnose: measure the realised ε.
        """
        self._norm, self._inverse_scale, self._radii, self._rounding = None, inverse_scale, [], {}
        climbing = [(self._leaves(group, names), rho) for group, rho in groups if isinstance(rho, Tensor) or rho != 0]
        climbing = [(leaves, rho) for leaves, rho in climbing if leaves.weights]
        if not climbing:
            return
        weights = [w for leaves, _ in climbing for w in leaves.weights]
        self._radii = [rho for _, rho in climbing]
        self._norm = norm = total_norm([n for leaves, _ in climbing for n in geometry.direction(leaves)])
        measure = diagnose or (not self._checked_rounding and any(w.dtype in HALF for w in weights))
        intended: list[Tensor] = []
        self._displacement.begin(weights, [p for group, _ in groups for p in group["params"]])
        for leaves, rho in climbing:
            scale = step_length(rho, norm)
            if measure:
                intended += [widen(g) * scale for g in leaves.gradients]
            self._displacement.add(leaves.weights, leaves.gradients, scale)
        if retreat:
            back = [gradient[w] if w in gradient else torch.zeros_like(w) for w in weights]
            if inverse_scale is not None:
                back = [g * inverse_scale for g in back]
            if measure:
                intended = [e - retreat * widen(g) for e, g in zip(intended, back, strict=True)]
            self._displacement.add(weights, back, -retreat)
        if measure:
            self._measure_rounding(weights, intended)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring w back, bit for bit. Does nothing at w."""
        self._displacement.restore()

    def overflow(self) -> Tensor | None:
        """0 where the climb's gradient was finite, NaN where it was not; ``None`` where nothing climbed."""
        return None if self._norm is None else self._norm - self._norm

    def measured(self) -> dict[str, Tensor]:
        """What is known of the last climb: see :attr:`steppe.SharpnessAware.diagnostics`."""
        if self._norm is None:
            return {}
        norm = self._norm if self._inverse_scale is None else self._norm * self._inverse_scale
        radius = torch.stack([torch.as_tensor(rho, dtype=norm.dtype, device=norm.device) for rho in self._radii]).max()
        return {"gradient_norm": norm, "radius": radius, **self._rounding}

    def _leaves(self, group: Mapping[str, Any], names: Mapping[Tensor, str]) -> Leaves:
        weights = [p for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in weights]
        if any(g.is_sparse for g in gradients):
            raise RuntimeError("sparse gradients cannot be climbed: build the embedding with sparse=False")
        if any(w.is_complex() for w in weights):
            raise RuntimeError("complex parameters cannot be climbed: hold them as real pairs (torch.view_as_real)")
        scratch = self._displacement.scratch(weights)
        return Leaves([names.get(p) for p in weights], weights, gradients, scratch, self._inverse_scale)

    def _measure_rounding(self, weights: list[Tensor], intended: list[Tensor]) -> None:
        realised = self._displacement.displacement(weights)
        length, wanted = total_norm(norms(realised)), total_norm(norms(intended))
        ratio, cosine = length / wanted, inner_product(realised, intended) / (length * wanted)
        self._rounding = {"perturbation_norm": length, "realised": ratio, "cosine": cosine}
        half = next((w.dtype for w in weights if w.dtype in HALF), None)
        # The one synchronisation of ours: once in the life of an optimizer of half-precision weights.
        if half is not None and not self._checked_rounding and (ratio < 0.9 or cosine < 0.9):
            warnings.warn(
                f"rounding to {half} eats the climb: ‖ε‖ is {ratio.item():.2f} of what was asked for, its cosine with "
                f"it {cosine.item():.2f}; keep the parameters in float32 under autocast, or pass "
                "climb_dtype=torch.float32",
                stacklevel=6,
            )
        self._checked_rounding = True


def total_norm(lengths: Sequence[Tensor]) -> Tensor:
    """The l2 norm of parts whose norms are given, as a 0-dim tensor on the first one's device."""
    device = lengths[0].device
    total: Tensor = torch.linalg.vector_norm(torch.stack([length.to(device) for length in lengths]))
    return total


def step_length(rho: float | Tensor, norm: Tensor) -> Tensor:
    """ρ / norm as a 0-dim tensor, and 0 where the norm is 0: no gradient, no climb."""
    return torch.where(norm == 0, 0.0, rho / norm)


def inner_product(x: list[Tensor], y: list[Tensor]) -> Tensor:
    """⟨x, y⟩ over lists of tensors, 0-dim, half precision summed in float32."""
    device = x[0].device
    products = [torch.sum(widen(a) * widen(b)).to(device) for a, b in zip(x, y, strict=True)]
    return torch.stack(products).sum()


def inverse_scale(scaler: torch.amp.GradScaler | None) -> Tensor | None:
    """1 / the scale of the losses, 0-dim on the device; ``None`` where nothing is scaled."""
    if scaler is None or not scaler.is_enabled():
        return None
    scale = scaler._get_scale_async()  # get_scale() would synchronise with the device
    return None if scale is None else scale.double().reciprocal().float()
