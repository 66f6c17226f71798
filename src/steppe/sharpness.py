"""One loop for every sharpness-aware method, as its caller sees it.

    gradient at w → climb to w + ε → gradient at w + ε → combine → step of the base optimizer from w

What is climbed, in which geometry, how far, and what is handed down are the four parts (:mod:`steppe.objectives`,
:mod:`steppe.geometries`, :mod:`steppe.radii`, :mod:`steppe.descents`); no method is known by name. What happens inside
a pass and between two is in :mod:`steppe.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from steppe.checks import fault_in_climb
from steppe.climb import inverse_scale
from steppe.engine import Engine
from steppe.objectives import check_batch


class SharpnessAware(Engine):
    r"""A sharpness-aware step around any optimizer.

    With the default parts (SAM):

        ε = ρ ∇L(w) / ‖∇L(w)‖          the base optimizer steps from w with ∇L(w + ε)

    It is a ``torch.optim.Optimizer``: ``param_groups``, ``state`` and ``defaults`` are the base optimizer's own, so
    schedulers, clipping and logging may be attached to either. ``group["rho"]``, where given, overrides the radius
    for a group; 0 leaves the group out of the climb (:func:`steppe.parameter_groups` builds the usual ones).

    Four ways to call it, with the same result:

    - ``optimizer.step(closure)``, the closure zeroing the gradients, computing the loss and calling ``backward()``.
    - ``for each in optimizer.passes(): with each: …`` and then ``optimizer.step()``: whatever passes the method takes;
      gradients may be clipped, unscaled and logged before the step.
    - ``with optimizer.climbing(): …``, ``if optimizer.climbs: with optimizer.perturbed(): …``, ``optimizer.step()``:
      the same written out, for methods of two passes.
    - ``with optimizer.perturbed(): …`` alone: the gradient of the first pass is taken as the caller left it. Where that
      cannot be the same step (domains, trust regions, ``same_dropout``, ranks that climb on their own) it raises; with
      a ``GradScaler``, ``perturbed(scaler)``.

    After any step, and after any exception inside one, the weights are w or the step's result, never w + ε.

    Args:
        base: the optimizer that makes the step. It must not need a closure itself (L-BFGS does).
        objective: what is climbed.
        geometry: which shape the neighbourhood has.
        radius: how far; a number or a :class:`~steppe.radii.Radius`.
        descent: which gradient the base optimizer gets.
        model: keeps BatchNorm's running statistics to clean weights, gives parameters their names, and shows how they
            are spread over processes (pass the wrapped model). Recommended.
        global_ascent: under DDP, climb on the joined batch of all ranks (one more reduction of gradients) instead of
            each rank on its own, as the SAM paper does. The default ``None`` is the latter; the former for parts that
            remember gradients, so that all ranks remember the same; and under FSDP2, where it is the only way. With
            ``False`` such a part remembers what is its rank's own, and a run resumes from a file of every rank.
        ascent_fraction: climb on this share of the batch, which the closure asks for by :meth:`ascent_batch`.
        m: m-sharpness: the batch comes in m parts (:meth:`ascent_batch`), each with a climb of its own, and the
            descent gradients are averaged: what m ranks would do.
        accumulate: with several micro-batches in one pass, ``"exact"`` makes their objective that of one large batch,
            for one more forward pass; ``"each"`` takes the objective of every micro-batch. Only objectives other than
            the mean loss know the difference.
        same_dropout: every pass of a step draws the same random numbers, so dropout masks are the same.
        climb_dtype: half-precision parameters are exchanged for copies in this dtype while at w + ε (their inputs
            must then come in this dtype too), because half precision rounds most of ε away. Not with parameters that
            several processes share.
        diagnose: at each climb measure the realised ε (see :attr:`diagnostics`); allocates. Without it, only the
            first climb of half-precision weights is measured.

    Attributes:
        base: the base optimizer.
        parts: the four :class:`~steppe.parts.Parts`.

    Raises:
        TypeError: ``base`` or a part is not what it should be.
        ValueError: options that exclude each other or the way the model is spread over processes, a part needs names
            and there are none, or a group of the base optimizer is to be maximised.
    """

    def __repr__(self) -> str:
        parts = self.parts
        own = f"{parts.objective}, {parts.geometry}, {parts.radius}, {parts.descent}"
        return f"{type(self).__name__}({own},\n  base={self.base!r})"

    # --- what the closure calls ---

    def objective(self, losses: Tensor, domain: Tensor | None = None) -> Tensor:
        """The loss to call ``backward()`` on, in every pass.

        Its value is L, the mean of ``losses``. Its gradient is ∇L too, except while climbing: there it is that of
        the objective (for DISAM L − λ Var{L_i}). On several ranks it is weighted so that their average is the
        gradient of the joined batch, however many samples each has.

        Args:
            losses: one loss a sample, shape ``[N]`` (``reduction="none"``); without ``domain`` any shape.
            domain: the domain of each sample, integers of shape ``[N]``.

        Raises:
            TypeError: ``domain`` is no tensor.
            ValueError: shapes differ, domains are not integers, or the objective needs domains and there are none.
        """
        check_batch(losses, domain)
        stage, ranks = self._stage, self._ranks
        domain = None if domain is None else domain.to(losses.device)
        together = not (ranks.own_climb and self._climbs_alone)
        if stage.phase == "survey":
            loss = self._weighing.surveyed(losses, domain)
        elif stage.phase == "climb" and not self.parts.plain and stage.climbs:
            loss = self._weighing.climbed(losses, domain, ranks, together=together)
        else:
            loss = self._weighing.mean(losses, ranks) if together else losses.mean()
        stage.note_loss(loss, losses.numel())
        return loss

    def ascent_batch(self, *batch: Any, domain: Tensor | None = None) -> Any:
        """The part of a batch that the present pass sees, for ``ascent_fraction`` and ``m``; else all of it.

        With ``ascent_fraction`` that is its first samples while climbing, with ``m`` the part whose turn it is; with
        ``domain`` stratified, so that every part has the domains in their proportions. Call it in every pass, before
        the model. Nothing is drawn: which samples come first is the loader's chance.

        Args:
            *batch: tensors with the samples first, or nested containers of such (tuples, lists, mappings).
            domain: the domain of each sample.

        Returns:
            The parts in the order given, ``domain`` last where given. A single one comes bare. In a closure give them
            names of their own, as a name that is assigned there is local from its first line on::

                part, labels, domains = optimizer.ascent_batch(x, y, domain=domain)

        Raises:
            TypeError: ``domain`` is no tensor.
            ValueError: there is no tensor, they differ in length, or they have fewer samples than ``m``.
        """
        given = batch if domain is None else (*batch, domain)
        phase = self._stage.phase if self._stage.climbs else None
        part, samples = self._share.of(given, domain, phase, self._stage.part)
        self._stage.note_share(samples)
        return part[0] if len(given) == 1 else part

    def trust(self, logits: Tensor, inputs: Any, mask: Tensor | None = None) -> None:
        """Measure a trust region's radius from the closure, where a forward hook cannot (``torch.compile``).

        Does nothing outside the first pass, and for other radii. The reference is asked here, after the model, with
        the random state of now: with dropout its mask is not the model's.

        Args:
            logits: what the model said, ``[..., C]``.
            inputs: what it was called with: a tensor, a tuple, or a dict of keyword arguments.
            mask: a weight (0 or 1) for each row of predictions, shape ``[...]``.
        """
        for _, part in self.parts.with_member("trust"):
            part.trust(logits, inputs, mask)

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """What the last step measured, 0-dim tensors on the device (reading one synchronises).

        - ``gradient_norm``: √(aᵀ P a), the climb's gradient in the norm of the geometry (‖a‖ where Euclidean);
        - ``radius``: the largest radius over the groups (a trust region's d);
        - ``loss_rise``: L(w + ε) − L(w), where the losses of the same samples came from :meth:`objective` or a closure
          at both;
        - with ``diagnose=True``: ``perturbation_norm``, the realised ‖ε‖; ``realised``, its ratio to the intended
          one (‖ε‖/ρ where Euclidean); ``cosine`` between the two. Below 0.9 rounding eats the climb.
        """
        return {**self._climb.measured(), **self._stage.loss_rise(disturbed=self.parts.disturbs)}

    # --- the passes ---

    def passes(self, scaler: torch.amp.GradScaler | None = None) -> Iterator[AbstractContextManager[Self]]:
        """The passes of the next step, one after the other: run the same code inside each, then :meth:`step`.

        ::

            for each in optimizer.passes():
                with each:
                    optimizer.zero_grad()
                    optimizer.objective(losses_of(x, y), domain).backward()
            optimizer.step()

        Args:
            scaler: see :meth:`climbing`.
        """
        self._reset()  # of a step that was begun and left, parts of its batch may be there
        for _ in range(self._share.parts):
            if self._surveys:
                yield self.surveying()
            if self.needs_clean_pass:
                yield self.clean()
            if self.parts.measures and self.climbs:
                yield self.measuring()
            yield self.climbing(scaler)
            if not self.climbs:
                return
            yield self.perturbed()

    @contextmanager
    def surveying(self) -> Iterator[Self]:
        """A forward pass over all micro-batches, before :meth:`climbing`: only for ``accumulate="exact"``."""
        with self._pass("survey"):
            yield self
        self._clear_gradients()

    @contextmanager
    def clean(self) -> Iterator[Self]:
        """The pass for ∇L(w), before :meth:`climbing`: only where :attr:`needs_clean_pass`."""
        with self._pass("clean"):
            yield self
        self._combining.keep_clean(self.parameters())
        self._clear_gradients()

    @contextmanager
    def measuring(self) -> Iterator[Self]:
        """The pass that the geometry measures itself by, before :meth:`climbing`: for TRAM-Fisher."""
        with self._pass("measure"):
            yield self
        # At w the restore buffer is free, unless it holds the weights one step ago.
        self._measured.keep(self.parameters(), None if self.parts.needs_previous else self._climb.displacement.store)
        self._clear_gradients()

    @contextmanager
    def climbing(self, scaler: torch.amp.GradScaler | None = None) -> Iterator[Self]:
        """The first pass, at w: inside, :meth:`objective` has the gradient to climb.

        Args:
            scaler: the ``GradScaler`` that scales the losses, where one does. Needed by what is not homogeneous in
                the gradient (Fisher, SAGM) or remembers it; harmless elsewhere.

        Raises:
            RuntimeError: a pass that belongs before this one is missing; or the objective is not the plain mean loss,
                and :meth:`objective` was not called inside.
        """
        with self._pass("climb"):
            yield self
        self._stage.inverse_scale = inverse_scale(scaler)
        if self.climbs:
            self._refuse(fault_in_climb(self.parts, self._stage, self._share))
            self._weighing.finish()
            self._stage.note_gradient(self.parameters())
        elif self.parts.climbs_at(self._steps):  # every radius is 0
            self._combining.skip(self.parameters(), self._stage)
            self._stage.complete = True
        else:
            self._combining.resume(self.parameters(), self._stage)
            self._complete()

    @contextmanager
    def perturbed(self, scaler: torch.amp.GradScaler | None = None) -> Iterator[Self]:
        """The second pass, at w + ε. On exit w is back bit for bit and ``.grad`` holds the descent gradient.

        Args:
            scaler: where :meth:`climbing` was not called, which else is given it: the ``GradScaler`` that has scaled
                the first gradient. Without it what is not homogeneous in the gradient is another method.

        Raises:
            RuntimeError: the first gradient is missing or cannot serve, or the pass left no gradient.
        """
        self._check_first_pass()
        if scaler is not None:
            self._stage.inverse_scale = inverse_scale(scaler)
        try:
            with self._pass("descent"):
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
                is a scaler) and returns the loss. Called once a pass: twice for most methods (:meth:`passes`).
                Without it, the passes have been made by the contexts; without those this is the base optimizer's
                step.
            scaler: an ``fp16`` ``GradScaler``; the step goes through ``scaler.step``, which skips it on overflow
                in either pass. ``scaler.update()`` stays with the caller.

        Returns:
            What the closure returned in the first pass at w, a tensor detached: of the fraction or at the noised inputs
            where that pass saw those; with ``m`` larger than 1 the mean over the parts, of numbers. Without a closure
            what the base returns.

        Raises:
            RuntimeError: the passes of this step are incomplete.
        """
        if self._stage.phase is not None:
            raise RuntimeError(f"step() inside a pass ({self._stage.phase!r}): it belongs after the `with` block")
        self._climb.restore()
        if scaler is not None and not scaler.is_enabled():
            scaler = None
        if closure is not None:
            loss = self._run_passes(closure, scaler)
            self._step_base(scaler)
            return loss
        if scaler is not None:
            return self._step_by(scaler)  # knows whether the caller has unscaled already, and comes back here
        if not self._stage.complete:
            if self._stage.begun:
                self._reset()
                raise RuntimeError("climbing() was not followed by perturbed(): .grad is not a descent gradient")
            if self._rests:
                return self.base.step()
            self._warn_plain_step()
        return self._step_base()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._descent_gradient = None
        if self._stage.complete and self._stage.phase is None:  # the step was skipped, and is not made any more
            self._stage.made()
            self._memories.discard()

    def _run_passes(self, closure: Callable[[], Any], scaler: torch.amp.GradScaler | None) -> Any:
        """All passes; the closure's loss at w, the mean of the parts' where there are several."""
        losses: dict[str, list[Any]] = {}
        samples: list[int] = []
        for each in self.passes(scaler):
            with each, torch.enable_grad():
                loss = closure()
                if isinstance(loss, Tensor):
                    self._stage.note_closure(loss)
                    loss = loss.detach()
                name = self._stage.phase
                assert name is not None
                losses.setdefault(name, []).append(loss)
                if name == "climb":
                    samples.append(self._stage.share("climb"))
        at_w = losses.get("clean") or losses["climb"]
        if len(at_w) == 1 or not all(isinstance(loss, Tensor | float) for loss in at_w):
            return at_w[0]
        return sum(n * loss for n, loss in zip(samples, at_w, strict=True)) / sum(samples)
