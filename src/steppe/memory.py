"""What a part remembers from step to step: named sets of tensors, one a parameter, saved with the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from steppe.shards import as_sharded, local, shard_of
from steppe.vectors import HALF

Start = Literal["zeros", "weights"]
"""What a remembered tensor is before the first step."""


class Memory:
    """The memory of one part.

    Where a ``GradScaler`` may still skip the step, what is written is put aside and counts from :meth:`commit` on;
    a skipped step leaves the memory as it was. Without one it counts at once: a mean of gradients has seen the gradient
    of a step that was interrupted at w + ε.
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[Tensor, Tensor]] = {}
        self._aside: dict[str, dict[Tensor, Tensor]] = {}
        self._written: dict[str, set[Tensor]] = {}

    @torch.no_grad()
    def tensors(
        self, name: str, parameters: Sequence[Tensor], start: Start = "zeros", *, deferred: bool = False
    ) -> list[Tensor]:
        """The tensors ``name``, parallel to ``parameters`` (the shards this rank holds), to be read and written.

        Args:
            name: one of the part's own.
            parameters: whose tensors are asked for.
            start: what they are before the first step. Copies of half-precision weights are kept in float32.
            deferred: what is written counts only once the step has been made.
        """
        kept = self._kept.setdefault(name, {})
        for p in parameters:
            if p not in kept:
                kept[p] = _first(local(p), start)
        if not deferred:
            return [kept[p] for p in parameters]
        aside, written = self._aside.setdefault(name, {}), self._written.setdefault(name, set())
        for p in parameters:
            if p not in written:
                aside[p] = aside[p].copy_(kept[p]) if p in aside else kept[p].clone()
                written.add(p)
        return [aside[p] for p in parameters]

    def commit(self) -> None:
        """The step was made: what was put aside counts."""
        for name, written in self._written.items():
            kept, aside = self._kept[name], self._aside[name]
            for p in written:
                kept[p], aside[p] = aside[p], kept[p]
        self._written = {}

    def discard(self) -> None:
        """The step was not made: forget what was put aside."""
        self._written = {}

    def keep_only(self, parameters: Sequence[Tensor]) -> None:
        """Free what belongs to parameters that are no longer there."""
        present = set(parameters)
        for store in (*self._kept.values(), *self._aside.values()):
            for p in [p for p in store if p not in present]:
                del store[p]

    def state(self, starts: Mapping[str, Start], keys: Mapping[Tensor, str]) -> dict[str, dict[str, Tensor]]:
        """Everything, by name and by parameter: complete also before the first step, as distributed checkpoints need.

        Args:
            starts: the names and what they start as.
            keys: what each parameter is called in a checkpoint.
        """
        return {
            name: {keys[p]: as_sharded(t, p) for p, t in zip(keys, self.tensors(name, list(keys), start), strict=True)}
            for name, start in starts.items()
        }

    @torch.no_grad()
    def load(
        self,
        state: Mapping[str, Mapping[str, Tensor]],
        starts: Mapping[str, Start],
        keys: Mapping[Tensor, str],
    ) -> None:
        """Take over what :meth:`state` gave. Names that ``state`` lacks begin anew."""
        self._kept, self._aside, self._written = {}, {}, {}
        for name in starts.keys() & state.keys():
            copy_by_key(self.tensors(name, list(keys), starts[name]), state[name], keys)


class Memories:
    """The memories of the four parts, and how they are saved.

    Args:
        starts: slot → what its part remembers, and what each starts as.
    """

    def __init__(self, starts: Mapping[str, Mapping[str, Start]]) -> None:
        self._starts = {slot: names for slot, names in starts.items() if names}
        self._memories = {slot: Memory() for slot in self._starts}

    def tensors(self, slot: str, name: str, parameters: Sequence[Tensor], *, deferred: bool = False) -> list[Tensor]:
        """See :meth:`Memory.tensors`.

        Raises:
            KeyError: the part has not said that it remembers this.
        """
        start = self._starts.get(slot, {}).get(name)
        if start is None:
            raise KeyError(f"the {slot} does not say in `remembers` that it remembers {name!r}")
        return self._memories[slot].tensors(name, parameters, start, deferred=deferred)

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """A step is about to move the weights: what starts as the weights is what they are now, if not set before."""
        for slot, starts in self._starts.items():
            for name, start in starts.items():
                if start == "weights":
                    self._memories[slot].tensors(name, parameters, start)

    def commit(self, parameters: Sequence[Tensor]) -> None:
        """The step was made."""
        for memory in self._memories.values():
            memory.commit()
            memory.keep_only(parameters)

    def discard(self) -> None:
        """The step was not made."""
        for memory in self._memories.values():
            memory.discard()

    def state(self, keys: Mapping[Tensor, str]) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Slot → name → parameter → tensor."""
        return {slot: memory.state(self._starts[slot], keys) for slot, memory in self._memories.items()}

    def check(self, state: Mapping[str, Any], keys: Mapping[Tensor, str]) -> None:
        """Raises ``ValueError`` where :meth:`load` would, and changes nothing."""
        for slot, starts in self._starts.items():
            saved = state.get(slot, {})
            for name in starts.keys() & saved.keys():
                check_by_key(saved[name], keys)

    def load(self, state: Mapping[str, Any], keys: Mapping[Tensor, str]) -> None:
        """Take over what :meth:`state` gave; what it lacks begins anew."""
        for slot, memory in self._memories.items():
            memory.load(state.get(slot, {}), self._starts[slot], keys)


def check_by_key(saved: Mapping[str, Tensor], keys: Mapping[Tensor, str]) -> None:
    """Raises ``ValueError`` where saved tensors lack a parameter, or have another shape."""
    for p, key in keys.items():
        if key not in saved:
            raise ValueError(
                f"the state has nothing for the parameter {key!r}: it belongs to another model, or to one whose "
                "parameters had names where they have none now, or the other way round (pass model=)"
            )
        if saved[key].shape != p.shape:
            saved_shape, shape = tuple(saved[key].shape), tuple(p.shape)
            raise ValueError(
                f"the state of the parameter {key!r} has the shape {saved_shape}, the parameter {shape}: it belongs to "
                "another model"
            )


@torch.no_grad()
def copy_by_key(targets: Sequence[Tensor], saved: Mapping[str, Tensor], keys: Mapping[Tensor, str]) -> None:
    """Copy saved tensors (whole or sharded), which :func:`check_by_key` has passed, into this rank's shards."""
    for target, (p, key) in zip(targets, keys.items(), strict=True):
        target.copy_(shard_of(saved[key], p))


def _first(shard: Tensor, start: Start) -> Tensor:
    if start == "zeros":
        return torch.zeros_like(shard, requires_grad=False)
    return shard.detach().clone() if shard.dtype not in HALF else shard.detach().float()
