"""The climb: from the gradients in ``.grad`` to weights at w + ε."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steppe.displacement import Displacement
from steppe.geometries import Geometry, Leaves
from steppe.persistent import unshare_gradients
from steppe.shards import is_sharded, local, locals_of, total_norm
from steppe.vectors import HALF, inner_product, norms, widen

Group = tuple[Mapping[str, Any], float | Tensor]


@dataclass(frozen=True)
class Ground:
    """What a climb starts from, beside the gradients in ``.grad``.

    Attributes:
        names: the parameters' names, as far as known.
        retreat: α of ε − α g.
        gradient: g by parameter, read only where α is not 0; what has none counts as 0.
        measured: the gradient of the measuring pass by parameter, where there was one.
        inverse_scale: 1/S where the gradients are scaled by S.
        remember: the geometry's memory: name, parameters → tensors.
        diagnose: measure the realised ε.
        keep_all: keep a copy of all weights, not only of those that climb.
    """

    names: Mapping[Tensor, str] = field(default_factory=dict)
    retreat: float = 0.0
    gradient: Mapping[Tensor, Tensor] = field(default_factory=dict)
    measured: Mapping[Tensor, Tensor] = field(default_factory=dict)
    inverse_scale: Tensor | None = None
    remember: Callable[[str, list[Tensor]], list[Tensor]] | None = None
    diagnose: bool = False
    keep_all: bool = False


class Climb:
    """Computes ε and holds the weights at w + ε until :meth:`restore`.

        ε = ρ P a / √(aᵀ P a) − α g

    with one norm over all perturbed parameters together, ρ a group's own, and the last term only for a descent that
    retreats.
    """

    def __init__(self, climb_dtype: torch.dtype | None) -> None:
        self.displacement = Displacement(climb_dtype)
        self._norm: Tensor | None = None
        self._overflow: Tensor | None = None
        self._inverse_scale: Tensor | None = None
        self._radii: list[float | Tensor] = []
        self._rounding: dict[str, Tensor] = {}
        self._checked_rounding = climb_dtype is not None
        self.dtype = climb_dtype

    @torch.no_grad()
    def to(self, groups: Sequence[Group], geometry: Geometry, ground: Ground) -> None:
        """Go to w + ε. The gradients in ``.grad`` are overwritten.

        Args:
            groups: every parameter group with its radius ρ; a plain 0 leaves a group out.
            geometry: P.
            ground: everything else that is known at w.
        """
        unshare_gradients([p for group, _ in groups for p in group["params"]])
        self._norm, self._overflow = None, None
        self._inverse_scale, self._radii, self._rounding = ground.inverse_scale, [], {}
        reached = [
            (parameters, rho)
            for group, rho in groups
            if (isinstance(rho, Tensor) or rho != 0)
            and (parameters := [p for p in group["params"] if p.grad is not None])
        ]
        if not reached:
            return
        # What passes of their own have measured need not show in ε: g/√F is 0, and finite, where F is infinite.
        beside = [] if ground.inverse_scale is None else [kept for kept in (ground.measured, ground.gradient) if kept]
        others = [total_norm(norms(list(kept.values())), list(kept)) for kept in beside]
        climbing = [(parameters, self._leaves(parameters, ground), rho) for parameters, rho in reached]
        parameters = [p for some, _, _ in climbing for p in some]
        self._radii = [rho for _, _, rho in climbing]
        lengths = [length for _, leaves, _ in climbing for length in geometry.direction(leaves)]
        self._norm = norm = total_norm(lengths, parameters)
        self._overflow = sum(((other - other).to(norm) for other in others), norm - norm)
        self._inverse_scale = climbing[0][1].inverse_scale  # a geometry may have taken the scale out
        measure = ground.diagnose or (not self._checked_rounding and any(p.dtype in HALF for p in parameters))
        intended: list[Tensor] = []
        everyone = [p for group, _ in groups for p in group["params"]]
        self.displacement.begin(parameters, everyone, keep_all=ground.keep_all)
        for some, leaves, rho in climbing:
            scale = step_length(rho, norm)
            if measure:
                intended += [widen(g) * scale.to(g.device) for g in leaves.gradients]
            self.displacement.add(some, leaves.gradients, scale)
        if ground.retreat:
            back = [ground.gradient[p] if p in ground.gradient else torch.zeros_like(local(p)) for p in parameters]
            if ground.inverse_scale is not None:
                back = [g * ground.inverse_scale.to(g.device) for g in back]
            if measure:
                intended = [e - ground.retreat * widen(g) for e, g in zip(intended, back, strict=True)]
            self.displacement.add(parameters, back, -ground.retreat)
        if measure:
            self._measure_rounding(parameters, intended)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring w back, bit for bit. Does nothing at w."""
        self.displacement.restore()

    def overflow(self) -> Tensor | None:
        """0 where the gradients at w were finite, NaN where one was not; ``None`` where nothing climbed."""
        return self._overflow

    def measured(self) -> dict[str, Tensor]:
        """What is known of the last climb: see :attr:`steppe.SharpnessAware.diagnostics`."""
        if self._norm is None:
            return {}
        norm = self._norm if self._inverse_scale is None else self._norm * self._inverse_scale
        radius = torch.stack([torch.as_tensor(rho, dtype=norm.dtype, device=norm.device) for rho in self._radii]).max()
        return {"gradient_norm": norm, "radius": radius, **self._rounding}

    def _leaves(self, parameters: list[Tensor], ground: Ground) -> Leaves:
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if any(g.is_sparse for g in gradients):
            raise RuntimeError("sparse gradients cannot be climbed: build the embedding with sparse=False")
        if any(p.is_complex() for p in parameters):
            raise RuntimeError("complex parameters cannot be climbed: hold them as real pairs (torch.view_as_real)")
        if self.dtype is not None and any(is_sharded(p) for p in parameters):
            raise RuntimeError("climb_dtype cannot exchange sharded parameters: keep them in float32 under FSDP2")
        remember = ground.remember
        scratch = self.displacement.scratch(parameters)
        # A layer that the measuring pass did not reach has a measure of 0.
        kept = ground.measured
        measured = [kept[p] if p in kept else s.zero_() for p, s in zip(parameters, scratch, strict=True) if kept]
        return Leaves(
            names=[ground.names.get(p) for p in parameters],
            weights=locals_of(parameters),
            gradients=gradients,
            scratch=scratch,
            inverse_scale=ground.inverse_scale,
            measured=measured,
            remember=None if remember is None else lambda name: remember(name, parameters),
        )

    def _measure_rounding(self, parameters: list[Tensor], intended: list[Tensor]) -> None:
        realised = self.displacement.displacement(parameters)
        length, wanted = total_norm(norms(realised), parameters), total_norm(norms(intended), parameters)
        product, nothing = length * wanted, wanted == 0  # nothing was asked for, and nothing is lost
        cosine = inner_product(realised, intended, parameters) / torch.where(product == 0, 1.0, product)
        ratio, cosine = torch.where(nothing, 1.0, length / wanted), torch.where(nothing, 1.0, cosine)
        self._rounding = {"perturbation_norm": length, "realised": ratio, "cosine": cosine}
        half = next((p.dtype for p in parameters if p.dtype in HALF), None)
        # The one synchronisation of ours: at the first climb of half-precision weights that goes anywhere.
        if half is None or self._checked_rounding or not wanted > 0:
            return
        self._checked_rounding = True
        if ratio < 0.9 or cosine < 0.9:
            warnings.warn(
                f"rounding to {half} eats the climb: ‖ε‖ is {ratio.item():.2f} of what was asked for, its cosine with "
                f"it {cosine.item():.2f}; keep the parameters in float32 under autocast, or pass "
                "climb_dtype=torch.float32 (in one process)",
                stacklevel=7,
            )


def step_length(rho: float | Tensor, norm: Tensor) -> Tensor:
    """ρ / norm as a 0-dim tensor, and 0 where the norm is 0: no gradient, no climb."""
    if isinstance(rho, Tensor):
        rho = rho.to(norm.device)
    return torch.where(norm == 0, 0.0, rho / norm)


def inverse_scale(scaler: torch.amp.GradScaler | None) -> Tensor | None:
    """1 / the scale of the losses, 0-dim on the device; ``None`` where nothing is scaled."""
    if scaler is None or not scaler.is_enabled():
        return None
    scale = scaler._get_scale_async()  # get_scale() would synchronise with the device
    return None if scale is None else scale.double().reciprocal().float()


def skipped(scaler: torch.amp.GradScaler | None, optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``optimizer.step()`` was called and yet did nothing: a fused optimizer is told of the overflow and skips.

    This waits for the device, as ``GradScaler`` itself does before it calls any other optimizer.
    """
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    return any(bool(found) for found in scaler._found_inf_per_device(optimizer).values())
