"""The engine: one loop for every sharpness-aware method.

    gradient at w → climb to w + ε → gradient at w + ε → combine → step of the base optimizer from w

What is climbed, in which geometry, how far, and what is handed down are the four parts (:mod:`steppe.objectives`,
:mod:`steppe.geometries`, :mod:`steppe.radii`, :mod:`steppe.descents`). The engine knows no method by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from steppe.climb import Climb, inner_product, inverse_scale
from steppe.descents import Descent
from steppe.displacement import widen
from steppe.geometries import Geometry
from steppe.groups import parameter_names
from steppe.objectives import Objective, check_batch, reweighted_mean
from steppe.parts import Parts
from steppe.persistent import KeptGradient
from steppe.radii import Radius, check_radius
from steppe.running_statistics import RunningStatistics
from steppe.wrapper import OptimizerWrapper


class SharpnessAware(OptimizerWrapper):
    r"""A sharpness-aware step around any optimizer.

    With the default parts (SAM):

        ε = ρ ∇L(w) / ‖∇L(w)‖          the base optimizer steps from w with ∇L(w + ε)

    It is a ``torch.optim.Optimizer``: ``param_groups``, ``state`` and ``defaults`` are the base optimizer's own, so
    schedulers, clipping and logging may be attached to either. ``group["rho"]``, where given, overrides the radius
    for a group; 0 leaves the group out of the climb (:func:`steppe.parameter_groups` builds the usual ones).

    Three ways to call it, with the same result:

    - ``optimizer.step(closure)``, the closure zeroing the gradients, computing the loss and calling ``backward()``.
    - ``with optimizer.climbing(): …`` and ``with optimizer.perturbed(): …`` around the two passes, then
      ``optimizer.step()``; gradients may be clipped, unscaled and logged before the step.
    - ``with optimizer.perturbed(): …`` alone: the gradient of the first pass is taken as the caller left it.

    After any step, and after any exception inside one, the weights are w or the step's result, never w + ε.

    Args:
        base: the optimizer that makes the step. It must not need a closure itself (L-BFGS does).
        objective: what is climbed.
        geometry: which shape the neighbourhood has.
        radius: how far; a number or a :class:`~steppe.radii.Radius`.
        descent: which gradient the base optimizer gets.
        model: keeps BatchNorm's running statistics to clean weights, and gives parameters their names. Recommended.
        climb_dtype: half-precision parameters are exchanged for copies in this dtype while at w + ε (their inputs
            must then come in this dtype too), because half precision rounds most of ε away.
        diagnose: at each climb measure the realised ε (see :attr:`diagnostics`); allocates. Without it, only the
            first climb of half-precision weights is measured.

    Attributes:
        base: the base optimizer.
        parts: the four :class:`~steppe.parts.Parts`.

    Raises:
        TypeError: ``base`` or a part is not what it should be.
        ValueError: a part needs names and there are none.
    """

    own_group_keys = ("rho",)

    def __init__(
        self,
        base: Optimizer,
        *,
        objective: Objective | None = None,
        geometry: Geometry | None = None,
        radius: float | Radius = 0.05,
        descent: Descent | None = None,
        model: nn.Module | None = None,
        climb_dtype: torch.dtype | None = None,
        diagnose: bool = False,
    ) -> None:
        if isinstance(base, SharpnessAware):
            raise TypeError("base is sharpness-aware already: compose the parts of one SharpnessAware instead")
        if isinstance(base, LBFGS):
            raise TypeError("LBFGS evaluates a closure of its own, which a sharpness-aware step has no place for")
        super().__init__(base)
        self.parts = Parts.of(objective, geometry, radius, descent)
        self.diagnose = diagnose
        self._climb = Climb(climb_dtype)
        self._gradient = KeptGradient()
        self._warned_plain_step = False
        self._phase: str | None = None
        self._descent_gradient: Tensor | None = None
        self._reset()
        self.attach(model)

    def _reset(self) -> None:
        """Forget a step that was begun."""
        self._done: set[str] = set()
        self._gradient.forget()
        self._inverse_scale: Tensor | None = None
        self._objective_calls: list[bool] = []  # a list: a plain attribute set inside torch.compile would be lost
        self._losses: dict[str, list[Tensor]] = {}

    def attach(self, model: nn.Module | None) -> None:
        """Use ``model`` (the wrapped one, once a library has wrapped it) for BatchNorm and for parameters' names.

        Raises:
            ValueError: a part needs names and neither ``model`` nor the base optimizer gives them.
        """
        self.model = model
        self._statistics = RunningStatistics(model)
        if self.parts.needs_names:
            parameter_names(self.param_groups, model)

    def __repr__(self) -> str:
        parts = self.parts
        own = f"{parts.objective}, {parts.geometry}, {parts.radius}, {parts.descent}"
        return f"{type(self).__name__}({own},\n  base={self.base!r})"

    # --- the objective, and what was measured ---

    def objective(self, losses: Tensor, domain: Tensor | None = None) -> Tensor:
        """The loss to call ``backward()`` on, in every pass.

        Its value is L, the mean of ``losses``. Its gradient is ∇L too, except while climbing: there it is that of
        the objective (for DISAM L − λ Var{L_i}).

        Args:
            losses: one loss a sample, shape ``[N]`` (``reduction="none"``); without ``domain`` any shape.
            domain: the domain of each sample, integers of shape ``[N]``.

        Raises:
            ValueError: shapes differ, domains are not integers, or the objective needs domains and there are none.
        """
        check_batch(losses, domain)
        if self._phase == "climb" and not self.parts.plain and self.climbs:
            domains = None if domain is None else domain.to(losses.device)
            # Losses of domains that are close would cancel in half precision.
            loss = reweighted_mean(losses, self.parts.objective.coefficients(widen(losses.detach()), domains))
            self._objective_calls.append(True)
        else:
            loss = losses.mean()
        if self._phase is not None:
            self._losses.setdefault(self._phase, []).append(loss.detach())
        return loss

    @property
    def climbs(self) -> bool:
        """Whether this step has a second pass; not where every radius is 0."""
        lengths = (self._length(group) for group in self.param_groups)
        return any(isinstance(length, Tensor) or length != 0 for length in lengths)

    @property
    def needs_clean_pass(self) -> bool:
        """Whether ∇L(w) takes a pass of its own (:meth:`clean`), as for DISAM with GSAM's or SAGM's descent."""
        return self.parts.needs_clean_pass and self.climbs

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """What the last step measured, 0-dim tensors on the device (reading one synchronises).

        - ``gradient_norm``: √(aᵀ P a), the climb's gradient in the norm of the geometry (‖a‖ where Euclidean);
        - ``radius``: the largest radius over the groups;
        - ``loss_rise``: L(w + ε) − L(w), where the loss came from :meth:`objective` or a closure;
        - with ``diagnose=True``: ``perturbation_norm``, the realised ‖ε‖; ``realised``, its ratio to the intended
          one (‖ε‖/ρ where Euclidean); ``cosine`` between the two. Below 0.9 rounding eats the climb.
        """
        measured = self._climb.measured()
        before, after = self._losses.get("clean") or self._losses.get("climb"), self._losses.get("descent")
        if before and after:
            measured["loss_rise"] = torch.stack(after).mean() - torch.stack(before).mean()
        return measured

    # --- the passes ---

    @contextmanager
    def clean(self) -> Iterator[Self]:
        """The pass for ∇L(w), before :meth:`climbing`: only where :attr:`needs_clean_pass`."""
        self._reset()
        with self._pass("clean"):
            yield self
        self._gradient.keep(self.parameters())
        self._clear_gradients()

    @contextmanager
    def climbing(self, scaler: torch.amp.GradScaler | None = None) -> Iterator[Self]:
        """The first pass, at w: inside, :meth:`objective` has the gradient to climb.

        Args:
            scaler: the ``GradScaler`` that scales the losses, where one does. Needed by what is not homogeneous in
                the gradient (SAGM); harmless elsewhere.

        Raises:
            RuntimeError: the objective is not the plain mean loss, and :meth:`objective` was not called inside.
        """
        counted = "clean" in self._done and "climb" not in self._done
        if not counted:
            self._reset()
        with self._pass("climb"), self._statistics.preserved(counted):
            yield self
        self._inverse_scale = inverse_scale(scaler)
        if not self.climbs:
            self._done.add("descent")
        elif not self.parts.plain and not self._objective_calls:
            self._reset()
            raise RuntimeError(
                f"{self.parts.objective} was to be climbed, but optimizer.objective(losses, domain) was not called "
                "inside climbing(): the gradient is not the objective's"
            )

    @contextmanager
    def perturbed(self) -> Iterator[Self]:
        """The second pass, at w + ε. On exit w is back bit for bit and ``.grad`` holds the descent gradient.

        Raises:
            RuntimeError: the first gradient is missing or cannot serve, or the pass left no gradient.
        """
        self._check_first_pass()
        try:
            with self._pass("descent"), self._statistics.preserved(dtype=self._climb.dtype):
                self._displace()
                yield self
        finally:
            # An interrupt may hit the way back itself: it is gone twice, and once more before the next pass or step.
            try:
                self._climb.restore()
            except BaseException:
                self._climb.restore()
                raise
        self._combine()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, scaler: torch.amp.GradScaler | None = None) -> Any:
        """One step of the base optimizer, from w, with the descent gradient.

        Args:
            closure: zeroes the gradients, computes the loss, calls ``backward()`` (on the scaled loss where there
                is a scaler) and returns the loss. Called once a pass: twice, or three times where
                :attr:`needs_clean_pass`. Without it, the passes have been made by the contexts; without those
                this is the base optimizer's step.
            scaler: an ``fp16`` ``GradScaler``; the step goes through ``scaler.step``, which skips it on overflow
                in either pass. ``scaler.update()`` stays with the caller.

        Returns:
            What the closure returned at w (a tensor comes detached); without a closure what the base returns.

        Raises:
            RuntimeError: the passes of this step are incomplete.
        """
        if self._phase is not None:
            raise RuntimeError(f"step() inside a pass ({self._phase!r}): it belongs after the `with` block")
        self._climb.restore()
        if scaler is not None and not scaler.is_enabled():
            scaler = None
        if closure is not None:
            loss = self._run_passes(closure, scaler)
            self._step_base(scaler)
            return loss
        if scaler is not None:
            return scaler.step(self)  # knows whether the caller has unscaled already, and comes back here
        if "descent" not in self._done:
            if self._done:
                self._reset()
                raise RuntimeError("climbing() was not followed by perturbed(): .grad is not a descent gradient")
            self._warn_plain_step()
        return self._step_base()

    def _step_base(self, scaler: torch.amp.GradScaler | None = None) -> Any:
        result = self.base.step() if scaler is None else scaler.step(self.base)
        torch.clear_autocast_cache()
        self._done = set()
        self._descent_gradient = None
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._descent_gradient = None

    def _run_passes(self, closure: Callable[[], Any], scaler: torch.amp.GradScaler | None) -> Any:
        losses = []
        if self.needs_clean_pass:
            with self.clean(), torch.enable_grad():
                losses.append(self._recorded(closure()))
        with self.climbing(scaler), torch.enable_grad():
            losses.append(self._recorded(closure()))
        if self.climbs:
            with self.perturbed(), torch.enable_grad():
                self._recorded(closure())
        return losses[0]

    def _recorded(self, loss: Any) -> Any:
        """The closure's loss, detached; noted for the diagnostics where :meth:`objective` did not note it."""
        if not isinstance(loss, Tensor):
            return loss
        if self._phase is not None:
            self._losses.setdefault(self._phase, [loss.detach()])
        return loss.detach()

    # --- one pass, and what happens between two ---

    @contextmanager
    def _pass(self, name: str) -> Iterator[None]:
        if self._phase is not None:
            raise RuntimeError(f"a pass cannot begin inside another ({self._phase!r} is under way)")
        self._climb.restore()  # does nothing, unless an interrupt hit the last restoration itself
        try:
            self._phase = name
            yield
        except BaseException:
            self._reset()
            raise
        finally:
            self._phase = None
        self._done.add(name)

    def _check_first_pass(self) -> None:
        if self._phase is not None:
            return  # _pass refuses
        if any(p.grad is self._descent_gradient for p in self.parameters() if p.grad is not None):
            raise RuntimeError(
                "the first gradient was added to the descent gradient of a step that was not made: all micro-batches "
                "belong inside one climbing() and one perturbed(), and zero_grad() before a new step"
            )
        if self.climbs and ("climb" not in self._done or "descent" in self._done):
            # A bare perturbed(). (A step that GradScaler skipped leaves its passes behind; they do not count.)
            if not self.parts.plain:
                raise RuntimeError(
                    f"perturbed() without climbing() takes the gradient as it is, which is not that of "
                    f"{self.parts.objective}: make the first pass inside climbing()"
                )
            self._reset()
        if self.needs_clean_pass and "clean" not in self._done:
            raise RuntimeError(
                f"{self.parts.descent} needs ∇L(w) beside the gradient of {self.parts.objective}: make one more pass "
                "inside `with optimizer.clean():`, before climbing(), or give the descent shared=True"
            )
        if all(p.grad is None for p in self.parameters()):
            raise RuntimeError("there is no gradient to climb: call backward() in the first pass, before perturbed()")

    @torch.no_grad()
    def _displace(self) -> None:
        if self.parts.keeps_gradient and "clean" not in self._done:
            self._gradient.keep(self.parameters())
        self._climb.to(
            [(group, self._length(group)) for group in self.param_groups],
            self.parts.geometry,
            names=parameter_names(self.param_groups, self.model) if self.parts.needs_names else {},
            retreat=self.parts.retreat,
            gradient=self._gradient.tensors,
            inverse_scale=self._inverse_scale,
            diagnose=self.diagnose,
        )
        self._clear_gradients()

    @torch.no_grad()
    def _combine(self) -> None:
        if all(p.grad is None for p in self.parameters()):
            self._reset()
            raise RuntimeError("there is no gradient at w + ε: call backward() inside perturbed()")
        for p, g in self._gradient.tensors.items():
            if p.grad is None:  # a layer that only the first pass reached
                p.grad = torch.zeros_like(g)
        parameters = [p for p in self.parameters() if p.grad is not None]
        perturbed = [p.grad for p in parameters if p.grad is not None]
        # A climb that overflowed must not pass for a step: GradScaler finds this NaN and skips.
        overflow = self._climb.overflow()
        if overflow is not None:
            perturbed[0].add_(overflow.to(perturbed[0]))
        gradient = self._gradient.of(parameters) if self.parts.keeps_gradient else []
        self.parts.descent.combine(perturbed, gradient, inner_product)
        self._gradient.forget()
        self._descent_gradient = perturbed[0]

    def _clear_gradients(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def _length(self, group: Mapping[str, Any]) -> float | Tensor:
        own = group.get("rho")
        if own is None:
            return self.parts.radius.length(group)
        return own if isinstance(own, Tensor) else check_radius(own)

    def _warn_plain_step(self) -> None:
        if not self._warned_plain_step:
            self._warned_plain_step = True
            warnings.warn(
                "step() had neither a closure nor climbing()/perturbed() before it: this is a plain step of the base "
                "optimizer, not a sharpness-aware one",
                stacklevel=5,  # past torch's wrappers of step()
            )
