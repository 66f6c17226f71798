"""Tensors that live from step to step, so that a step allocates nothing: a copy of the weights, one of the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steppe.shards import local
from steppe.vectors import add_scaled, scale


class TensorStore:
    """One persistent tensor a parameter, allocated when first asked for and again when the parameter changes."""

    def __init__(self) -> None:
        self._tensors: dict[Tensor, Tensor] = {}

    def like(self, parameters: Sequence[Tensor], templates: Sequence[Tensor] | None = None) -> list[Tensor]:
        """A tensor for each parameter, with any content.

        Args:
            parameters: whose tensors are asked for.
            templates: what shape, strides, dtype and device they have, where not the parameters' own.
        """
        templates = parameters if templates is None else templates
        found = [self._tensors.get(p) for p in parameters]
        if all(t is not None and _alike(t, m) for t, m in zip(found, templates, strict=True)):
            return [t for t in found if t is not None]
        for p, t, template in zip(parameters, found, templates, strict=True):
            if t is None or not _alike(t, template):
                self._tensors[p] = torch.empty_like(template, requires_grad=False)
        return [self._tensors[p] for p in parameters]

    def known(self, parameters: Sequence[Tensor], templates: Sequence[Tensor]) -> dict[Tensor, Tensor]:
        """The tensors of those parameters that have one, as it was left."""
        found = ((p, self._tensors.get(p), template) for p, template in zip(parameters, templates, strict=True))
        return {p: t for p, t, template in found if t is not None and _alike(t, template)}

    def keep_only(self, parameters: Sequence[Tensor]) -> None:
        """Free what belongs to parameters that are no longer there (a library may swap them)."""
        if len(self._tensors) > len(parameters):
            present = set(parameters)
            self._tensors = {p: t for p, t in self._tensors.items() if p in present}


class KeptGradient:
    """A copy of the gradient in ``.grad`` (of this rank's shards), in persistent tensors, by parameter."""

    def __init__(self) -> None:
        self._store = TensorStore()
        self.tensors: dict[Tensor, Tensor] = {}
        """The kept gradient by parameter; empty where none is kept."""
        self._weight: float | Tensor = 0.0

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def keep(self, parameters: Sequence[Tensor], store: TensorStore | None = None) -> None:
        """Copy what is in ``.grad`` now.

        Args:
            parameters: whose gradients.
            store: where to, instead of tensors of its own.
        """
        self._store.keep_only(parameters)
        reached = [p for p in parameters if p.grad is not None]
        gradients = [local(p.grad) for p in reached if p.grad is not None]
        kept = (store or self._store).like(reached, gradients)
        if reached:
            torch._foreach_copy_(kept, gradients)
        self.tensors = dict(zip(reached, kept, strict=True))

    @torch.no_grad()
    def add(self, gradients: Mapping[Tensor, Tensor], weight: float | Tensor) -> None:
        """Add ``weight`` (0-dim) times other gradients; a parameter that is new begins at 0."""
        self._weight = self._weight + weight
        for p, kept in zip(gradients, self._store.like(list(gradients), list(gradients.values())), strict=True):
            if p not in self.tensors:
                self.tensors[p] = kept.zero_()
        targets, sources = [self.tensors[p] for p in gradients], list(gradients.values())
        if isinstance(weight, Tensor):
            add_scaled(targets, sources, weight)
        elif gradients:
            torch._foreach_add_(targets, sources, alpha=weight)

    @torch.no_grad()
    def divide(self) -> None:
        """Make what was added a mean: divide by the sum of the weights."""
        if isinstance(self._weight, Tensor):
            scale(list(self.tensors.values()), 1 / self._weight)
        elif self.tensors:
            torch._foreach_div_(list(self.tensors.values()), self._weight)

    def of(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The kept gradient of each parameter; zeros where it had none."""
        return [
            self.tensors[p] if p in self.tensors else torch.zeros_like(local(p if p.grad is None else p.grad))
            for p in parameters
        ]

    def forget(self) -> None:
        """Keep none. The memory stays for the next step."""
        self.tensors = {}
        self._weight = 0.0


def repeats(tensor: Tensor) -> bool:
    """Whether one number in memory stands in several places (``expand``), so that it cannot be written to."""
    if tensor.layout != torch.strided:
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


@torch.no_grad()
def unshare_gradients(parameters: Sequence[Tensor]) -> None:
    """Give each parameter a gradient of its own to write to.

    ``backward()`` does. What is put into ``.grad`` by hand may be one tensor for several parameters, as
    ``torch.autograd.grad`` gives for two that are added, or repeat one number.
    """
    seen: dict[tuple[int, Any], torch.UntypedStorage] = {}  # what has an address here lives on, and keeps it
    for p in parameters:
        if (whole := p.grad) is None:
            continue
        gradient = local(whole)
        if gradient.layout != torch.strided:
            continue
        storage = gradient.untyped_storage()
        place = (id(storage), gradient.storage_offset())
        if place in seen or (not gradient.is_contiguous() and repeats(gradient)):
            p.grad = whole.clone(memory_format=torch.contiguous_format)
        seen[place] = storage


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
