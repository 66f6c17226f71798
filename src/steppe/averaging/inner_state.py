"""What becomes of the inner optimizer's state (momentum, moments) at the end of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Adagrad, Optimizer

from steppe.averaging.portions import pull_back
from steppe.errors import unknown_name
from steppe.shards import as_sharded, local, shard_of
from steppe.vectors import HALF

Handling = Literal["carry", "reset", "pullback"]
"""Carry on as it is; begin as a new optimizer does; follow as slowly as the weights."""


class InnerState:
    """Carries on, resets or pulls back an optimizer's state; ``"pullback"`` holds one more copy of it.

    Args:
        handling: which of the three.
        optimizer: the innermost one.

    Raises:
        ValueError: ``handling`` is none of the three, or ``"reset"`` is impossible with this optimizer.
    """

    def __init__(self, handling: Handling, optimizer: Optimizer) -> None:
        if handling not in get_args(Handling):
            raise unknown_name("state", str(handling), get_args(Handling))
        if handling == "reset" and isinstance(optimizer, Adagrad):
            raise ValueError("Adagrad begins with a state that it was made with: use state='carry' or state='pullback'")
        self.handling = handling
        self._slow: dict[str, dict[Tensor, Tensor]] = {}

    @torch.no_grad()
    def end_round(self, optimizer: Optimizer, parameters: Sequence[Tensor], share: float) -> None:
        """The round ends: what the weights do, the state does too, or it is dropped.

        Args:
            optimizer: the innermost one.
            parameters: its parameters.
            share: α of s ← s + α (s_fast − s).
        """
        if self.handling == "reset":
            for p in parameters:
                optimizer.state.pop(p, None)
        if self.handling == "pullback":
            present = set(parameters)
            self._slow = {name: {p: t for p, t in kept.items() if p in present} for name, kept in self._slow.items()}
            for name, fast in _tensors(optimizer, parameters).items():
                shards = [local(tensor) for tensor in fast.values()]
                pull_back(self._followers(name, fast), shards, shards, share)

    def forget(self) -> None:
        """The first round is to come."""
        self._slow = {}

    def state(self, optimizer: Optimizer, keys: Mapping[Tensor, str]) -> dict[str, dict[str, Tensor]]:
        """The slow state by name and parameter: complete as soon as the optimizer has a state.

        Args:
            optimizer: the innermost one.
            keys: what each parameter is called.
        """
        if self.handling != "pullback":
            return {}
        return {
            name: {
                keys[p]: as_sharded(slow, p) for p, slow in zip(fast, self._followers(name, fast), strict=True)
            }
            for name, fast in _tensors(optimizer, list(keys)).items()
        }  # fmt: skip

    def check(self, saved: Mapping[str, Mapping[str, Tensor]], keys: Mapping[Tensor, str]) -> None:
        """Raises ``ValueError`` where :meth:`load` would go wrong."""
        for name, tensors in saved.items():
            for p, key in keys.items():
                if key in tensors and tensors[key].shape != p.shape:
                    raise ValueError(
                        f"the slow {name} of the parameter {key!r} has the shape {tuple(tensors[key].shape)}, the "
                        f"parameter {tuple(p.shape)}: it belongs to another model"
                    )

    def load(self, saved: Mapping[str, Mapping[str, Tensor]], keys: Mapping[Tensor, str]) -> None:
        """Take over what :meth:`state` gave."""
        self._slow = {}
        if self.handling == "pullback":
            for name, tensors in saved.items():
                known = [(p, shard_of(tensors[key], p)) for p, key in keys.items() if key in tensors]
                self._slow[name] = {p: shard.to(local(p).device, copy=True) for p, shard in known}

    def _followers(self, name: str, fast: Mapping[Tensor, Tensor]) -> list[Tensor]:
        kept = self._slow.setdefault(name, {})
        for p, tensor in fast.items():
            if p not in kept:
                wide = torch.float32 if tensor.dtype in HALF else tensor.dtype
                kept[p] = torch.zeros_like(local(tensor), dtype=wide, requires_grad=False)
        return [kept[p] for p in fast]


def _tensors(optimizer: Optimizer, parameters: Sequence[Tensor]) -> dict[str, dict[Tensor, Tensor]]:
    """What an optimizer has of each parameter's shape, by name; the count of steps is no such thing.

    A name that is of another shape for some parameter (``mu_product``) is a number of its own, and happens to have the
    shape of a parameter that is one number.
    """
    found: dict[str, dict[Tensor, Tensor]] = {}
    others = {"step"}
    for p in parameters:
        state: Mapping[str, Any] = optimizer.state.get(p, {})
        for name, value in state.items():
            if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
                continue
            if value.shape == p.shape:
                found.setdefault(name, {})[p] = value
            else:
                others.add(name)
    return {name: tensors for name, tensors in found.items() if name not in others}
