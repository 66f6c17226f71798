"""Averages of the weights along a training run: what SWAD, SWA and EMA have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from steppe.groups import parameter_keys
from steppe.memory import check_by_key, copy_by_key
from steppe.shards import as_sharded, is_sharded, local
from steppe.vectors import HALF

VERSION = 1
"""Of the states that averages are saved in."""


@runtime_checkable
class Average(Protocol):
    """The weights of a run, averaged over some of its steps.

    Attributes:
        start: after :meth:`finish`, the first step whose weights are in the average, counted from 1; 0 for none.
        end: the last one.
    """

    start: int
    end: int

    def update(self) -> None:
        """The optimizer has made a step: take in the weights as they are now."""

    def segment(self, val_loss: float) -> None:
        """The model was evaluated; its validation loss, the same number on every rank."""

    def finish(self) -> dict[str, Tensor]:
        """The averaged state dict, for ``model.load_state_dict``: parameters averaged, buffers as they are now.

        The model and the average stay as they are; more steps may follow, and another call.
        """

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, to be saved before the next step: the tensors are no copies."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, bit for bit, from what :meth:`state_dict` gave."""


class Weights:
    """The parameters of a model that can be averaged: real and complex ones of 16 bits or more, frozen ones too.

    They are read anew each time, for a library may put others in their place. Tied ones are one. Of sharded parameters
    this rank's shards are read and averaged.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        if not self._parameters():
            raise ValueError(f"there is nothing to average: {type(model).__name__} has no parameters of floating point")

    def names(self) -> dict[Tensor, str]:
        """The parameters of now, each with its name in the bare model, whatever that is wrapped in."""
        return parameter_keys([{"params": self._parameters()}], self.model)

    def read(self) -> list[Tensor]:
        """The weights of now, in the order of :meth:`names`, detached: the same memory."""
        return [local(p).detach() for p in self._parameters()]

    def _parameters(self) -> list[Tensor]:
        reshard(self.model)
        found = (p for p in self.model.parameters() if p.is_floating_point() or p.is_complex())
        return [p for p in found if p.element_size() > 1]

    @torch.no_grad()
    def in_model(self, averages: Mapping[Tensor, Tensor]) -> dict[str, Tensor]:
        """The model's state dict with averages in place of parameters, and copies of everything else.

        Args:
            averages: a tensor for each of :meth:`names`, of the shape this rank holds; may become part of the result.

        Raises:
            RuntimeError: the model leaves out a parameter that is trained.
        """
        state: dict[str, Tensor] = self.model.state_dict(keep_vars=True)
        missing = averages.keys() - {value for value in state.values() if isinstance(value, Tensor)}
        if any(p.requires_grad for p in missing):
            lost = sorted(name for p, name in self.names().items() if p in missing and p.requires_grad)
            raise RuntimeError(f"the state_dict() of {type(self.model).__name__} does not hold {', '.join(lost)}")
        ready = {p: as_sharded(t.to(local(p).device, p.dtype), p) for p, t in averages.items() if p not in missing}
        for name, value in state.items():
            if isinstance(value, Tensor):  # a module may save more than tensors
                state[name] = ready[value] if value in ready else value.detach().clone()
        return state

    @torch.no_grad()
    def save(self, sets: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Sets of tensors by name; under FSDP2 empty ones in full too, as distributed checkpoints need."""
        names = self.names()
        if any(is_sharded(p) for p in names):
            sets = {key: tensors or [empty_like(local(p)).zero_() for p in names] for key, tensors in sets.items()}
        return {
            key: {name: as_sharded(t, p) for (p, name), t in zip(names.items(), tensors, strict=True)}
            for key, tensors in sets.items()
            if tensors
        }

    def check(self, saved: Mapping[str, Mapping[str, Tensor]], needed: Sequence[str]) -> None:
        """Raise ``ValueError`` unless all that is needed was saved, of such a model."""
        names = self.names()
        for key in needed:
            if key not in saved:
                raise ValueError(f"the state is not whole: it lacks the weights of {key!r}")
            check_by_key(saved[key], names)
            if unknown := sorted(saved[key].keys() - set(names.values())):
                raise ValueError(f"the state belongs to another model: this one has no {', '.join(unknown)}")

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor], device: torch.device | None) -> list[Tensor]:
        """One of the sets that :meth:`check` has passed, in tensors of its own."""
        names = self.names()
        tensors = [empty_like(local(p), device) for p in names]
        copy_by_key(tensors, saved, names)
        return tensors


def empty_like(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """Room for the mean of such tensors: float32 for half precision; where the tensor is, unless told."""
    dtype = torch.float32 if tensor.dtype in HALF else tensor.dtype
    return torch.empty_like(tensor, dtype=dtype, device=device, requires_grad=False)


@torch.no_grad()
def take_in(means: Sequence[Tensor], tensors: Sequence[Tensor], number: int) -> None:
    """m_n = m_{n−1} + (x_n − m_{n−1})/n in place: the mean of x_1, …, x_n, where the means were that of n − 1.

    Equal tensors have exactly that mean. Otherwise each call rounds once, and what it rounds shrinks with all later
    calls: after n of them the mean is off by n/2 roundings of its dtype at worst, by some √(n/3) if they are random.

    Args:
        means: m, float32 or better; overwritten without being read where n is 1.
        tensors: x_n. Half precision is widened, one tensor at a time.
        number: n, from 1.

    Raises:
        RuntimeError: shapes or devices differ.
    """
    if [(m.shape, m.device) for m in means] != [(t.shape, t.device) for t in tensors]:
        raise RuntimeError(
            "the model's parameters are not those that averaging began with (sharded, resized or moved since?): "
            "make the average of the model as it is trained"
        )
    if number == 1:
        torch._foreach_copy_(list(means), list(tensors))
        return
    alike = [(m, t) for m, t in zip(means, tensors, strict=True) if m.dtype == t.dtype]
    if alike:
        torch._foreach_lerp_([m for m, _ in alike], [t for _, t in alike], 1 / number)
    for m, t in zip(means, tensors, strict=True):
        if m.dtype != t.dtype:
            m.lerp_(t.to(m.dtype), 1 / number)


def check_saved(state: Mapping[str, Any], average: Average, settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless a state is one of this kind of average, made with these settings."""
    own = type(average).__name__
    if state.get("average") != own:
        raise ValueError(f"the state is that of {state.get('average', 'something else')}, not of {own}")
    if state["version"] > VERSION:
        raise ValueError(f"the state was written by a newer steppe (its version is {state['version']}, ours {VERSION})")
    if dict(state["settings"]) != dict(settings):
        found, expected = (
            ", ".join(f"{key}={value}" for key, value in each.items()) for each in (state["settings"], settings)
        )
        raise ValueError(f"the state is that of {own} with {found}, not with {expected}")


def reshard(model: nn.Module) -> None:
    """Let a model's parameters be its shards under FSDP2, which after an evaluation may show whole weights instead."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
