"""From the gradients at w + ε to the gradient that the base optimizer gets, all of it in ``.grad``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steppe.batches import Share
from steppe.descents import Gradients
from steppe.memory import Memories
from steppe.parts import Parts
from steppe.persistent import KeptGradient, unshare_gradients
from steppe.replicas import Replicas
from steppe.shards import as_sharded, local
from steppe.stage import Stage
from steppe.vectors import inner_product


class Combining:
    """Holds g = ∇L(w) for a descent that needs it, adds up the parts of the batch, and lets the descent combine.

    Args:
        parts: the four parts.
        share: how many parts the batch has.
        memories: the parts' memories.
    """

    def __init__(self, parts: Parts, share: Share, memories: Memories) -> None:
        self._parts = parts
        self._share = share
        self._memories = memories
        self._clean = KeptGradient()
        self._clean_mean, self._perturbed_mean = KeptGradient(), KeptGradient()

    @property
    def clean(self) -> dict[Tensor, Tensor]:
        """g by parameter; empty where none is kept."""
        return self._clean.tensors

    def keep_clean(self, parameters: Sequence[Tensor]) -> None:
        """Keep what is in ``.grad`` as g.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        if any(p.grad is not None and p.grad.layout != torch.strided for p in parameters):
            raise RuntimeError(f"sparse gradients cannot be kept for {self._parts.descent}: use sparse=False")
        self._clean.keep(parameters)

    def forget(self) -> None:
        """A new step begins."""
        for kept in (self._clean, self._clean_mean, self._perturbed_mean):
            kept.forget()

    @torch.no_grad()
    def combine(self, parameters: Sequence[Tensor], stage: Stage, ranks: Replicas, overflow: Tensor | None) -> bool:
        """Put the descent gradient into ``.grad``; of a part of the batch, add its gradient to those before.

        Args:
            parameters: all of the optimizer's.
            stage: the step under way.
            ranks: that train together.
            overflow: 0, or NaN where the climb's gradient was not finite; ``None`` where nothing climbed.

        Returns:
            Whether the descent gradient is there: false after all parts but the last.

        Raises:
            RuntimeError: there is no gradient at w + ε.
        """
        if all(p.grad is None for p in parameters):
            raise RuntimeError("there is no gradient at w + ε: call backward() inside perturbed()")
        device = local(parameters[0]).device
        for p, g in self._clean.tensors.items():
            if p.grad is None:  # a layer that only the first pass reached
                p.grad = as_sharded(torch.zeros_like(g), p)
        unshare_gradients(parameters)
        reached, perturbed = _gradients(parameters)
        if ranks.own_climb:  # also where nothing climbed here: every rank must call
            overflow = ranks.sum(torch.zeros((), device=device) if overflow is None else overflow.float().to(device))
        if overflow is not None:
            # A climb that overflowed must not pass for a step: GradScaler finds this NaN and skips, on every rank.
            dense = next((g for g in perturbed if not g.is_sparse), None)
            if dense is not None:
                dense.add_(overflow.to(dense))
        if self._share.parts > 1:
            if not self._add_part(dict(zip(reached, perturbed, strict=True)), stage, ranks):
                return False
            reached, perturbed = _gradients(parameters)
        clean = self._clean.of(reached) if self._parts.keeps_gradient else []
        if ranks.own_climb and clean:  # each rank's own gradient would let the replicas drift apart
            samples = stage.samples("clean") or stage.samples("climb")
            ranks.average(clean, ranks.weight(samples, clean[0]) if samples else None)
        self._parts.descent.combine(self._described(reached, perturbed, clean, stage))
        self._clean.forget()
        return True

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def skip(self, parameters: Sequence[Tensor], stage: Stage) -> None:
        """A step without a climb because every radius is 0: let the descent know, where it asks."""
        skip = getattr(self._parts.descent, "skip", None)
        reached, gradients = _gradients(parameters)
        if skip is not None and reached:
            skip(self._described(reached, gradients, [], stage))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def resume(self, parameters: Sequence[Tensor], stage: Stage) -> None:
        """A step without a climb: put what the descent makes of ∇L(w) into ``.grad``.

        Raises:
            RuntimeError: there is no gradient.
        """
        unshare_gradients(parameters)
        reached, gradients = _gradients(parameters)
        if not reached:
            raise RuntimeError("there is no gradient: call backward() inside climbing()")
        self._parts.descent.resume(self._described(reached, gradients, [], stage))  # type: ignore[attr-defined]

    def _add_part(self, perturbed: dict[Tensor, Tensor], stage: Stage, ranks: Replicas) -> bool:
        """Add the gradients of a part of the batch; after the last, the means take their place."""
        samples = stage.share("descent")
        # What the ranks have averaged counts for the samples of all: by its own, each would weigh its parts otherwise.
        joined = samples if ranks.world == 1 else ranks.joined(samples, next(iter(perturbed.values())))
        self._perturbed_mean.add(perturbed, joined)
        self._clean_mean.add(self._clean.tensors, samples if ranks.own_climb else joined)
        if stage.part + 1 < self._share.parts:
            self._clean.forget()
            return False
        for mean in (self._perturbed_mean, self._clean_mean):
            mean.divide()
        for p, mean_gradient in self._perturbed_mean.tensors.items():
            p.grad = as_sharded(mean_gradient.clone(), p)
        self._clean.tensors = dict(self._clean_mean.tensors)
        return True

    def _described(
        self, reached: list[Tensor], perturbed: list[Tensor], clean: list[Tensor], stage: Stage
    ) -> Gradients:
        deferred = stage.inverse_scale is not None
        return Gradients(
            perturbed,
            clean,
            inner=lambda x, y: inner_product(x, y, reached),
            remember=lambda name: self._memories.tensors("descent", name, reached, deferred=deferred),
        )


def _gradients(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient, and what this rank holds of it."""
    reached = [p for p in parameters if p.grad is not None]
    return reached, [local(p.grad) for p in reached if p.grad is not None]
