"""Sets of weights, in a state dict, a module or a ``.safetensors`` file, and putting them into a model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steppe.analysis.exact import exact
from steppe.analysis.keeping import bare, refuse_shards, whole_parameters, written
from steppe.persistent import repeats

State = Mapping[str, Tensor] | nn.Module | str | os.PathLike[str]
"""A state dict, a module (its state dict), or the path of a ``.safetensors`` file."""


class Source(Protocol):
    """A set of weights, read tensor by tensor."""

    label: str

    def names(self) -> list[str]:
        """The names of its tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one, which is not read."""

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of one; of it, no more than one number is read."""

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """A part of one along its first dimension; all of it where it has no dimension."""


class InMemory:
    """A state dict."""

    def __init__(self, state: Mapping[str, Tensor], label: str) -> None:
        self.label = label
        self._state = {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
        for name, value in self._state.items():
            refuse_shards(value, name)

    def names(self) -> list[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._state[name].dtype

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        value = self._state[name]
        return value[begin:end] if value.dim() else value


class InFile:
    """A ``.safetensors`` file, of which nothing but its head is read before it is asked for.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        ValueError: there is no such file, or it is none of this format.
    """

    def __init__(self, path: Path, label: str) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ModuleNotFoundError as error:
            message = f"reading {path} needs 'safetensors': pip install 'steppe[bench]'"
            raise ModuleNotFoundError(message, name="safetensors") from error
        self.label = f"{label} ({path})"
        try:
            self._file: Any = safe_open(path, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.label} cannot be read as .safetensors: {error}") from error

    def names(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        found: torch.dtype = self.rows(name, 0, 0).dtype
        return found

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        found: Tensor = self._file.get_slice(name)[begin:end] if self.shape(name) else self._file.get_tensor(name)
        return found


def source(state: State, label: str) -> Source:
    """Where the weights are read from.

    Raises:
        TypeError: it is none of the kinds of :data:`State`.
        ValueError: a file that cannot be read, or sharded tensors.
    """
    if isinstance(state, nn.Module):
        return InMemory(bare(state).state_dict(), label)
    if isinstance(state, Mapping):
        return InMemory(state, label)
    if isinstance(state, str | os.PathLike):
        return InFile(Path(state), label)
    raise TypeError(f"{label} must be a state dict, a module or the path of a .safetensors file, not {state!r:.80}")


class Places:
    """The tensors of a model that hold its state, and writing mixtures of states to them.

    Args:
        model: whose tensors; to be :func:`~steppe.analysis.keeping.kept` with its weights.
        states: what is to be written. Those that share memory with the model are copied.

    Raises:
        ValueError: a state lacks a parameter, has one of another shape, or has one that the model has not; or the model
            is sharded or has no parameters.
    """

    def __init__(self, model: nn.Module, states: Sequence[tuple[State, str]]) -> None:
        whole_parameters(model)
        inner = bare(model)
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in inner.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        buffers = dict(_persistent_buffers(inner))
        read = [source(state, label) for state, label in states]
        called = [_names_in(each, names, buffers) for each in read]
        for each, found in zip(read, called, strict=True):
            _check_shapes(each, {**dict(zip(found, names, strict=True)), **buffers})
        own = {t.untyped_storage().data_ptr() for t in (*names, *buffers.values())}
        present = [set(each.names()) for each in read]
        held = [name for name, b in buffers.items() if not repeats(b) and all(name in some for some in present)]
        self._parameters = list(names)
        self._buffers = [buffers[name] for name in held]
        self._weights = [[_whole(e, name, own) for name in found] for e, found in zip(read, called, strict=True)]
        self._statistics = [[_whole(each, name, own) for name in held] for each in read]

    def put(self, shares: Sequence[float]) -> None:
        """Write Σ c_k w_k, for shares c_k that sum to 1, computed in float64 and rounded once.

        A share of 1 beside zeros writes that state bit for bit. Buffers of floating point are mixed by the same shares,
        but never extrapolated, as a variance would become negative: a share below 0 counts 0, and the others are scaled
        to a sum of 1. Other buffers (counts) are those of the first state; what a state lacks stays the model's.
        """
        for target, *values in zip(self._parameters, *self._weights, strict=True):
            target.copy_(_mixture(values, shares))
        positive = [max(share, 0.0) for share in shares]
        convex = [share / sum(positive) for share in positive]
        for buffer, *values in zip(self._buffers, *self._statistics, strict=True):
            buffer.copy_(_mixture(values, convex))
        written()

    def differences(self, first: int, others: Sequence[int]) -> Tensor:
        """⟨w_i − w_first, w_j − w_first⟩ over the parameters, for i and j in ``others``: float64, on the CPU."""
        gram = torch.zeros(len(others), len(others), dtype=torch.float64)
        for place in range(len(self._parameters)):
            origin = exact(self._weights[first][place]).flatten()
            rows = torch.stack([exact(self._weights[other][place]).flatten().to(origin) - origin for other in others])
            gram += (rows @ rows.T).cpu()
        return gram

    def rounding(self) -> float:
        """The length that the rounding of the weights to their dtype can have: ε‖w‖, the largest of the states'."""
        floating = [[w for w in weights if w.is_floating_point()] for weights in self._weights]
        lengths = [[torch.finfo(w.dtype).eps * exact(w).norm().item() for w in weights] for weights in floating]
        return max(math.hypot(*each) for each in lengths)


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, buffer in owner._buffers.items():
            if buffer is not None and name not in owner._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _names_in(state: Source, parameters: Mapping[nn.Parameter, list[str]], buffers: Mapping[str, Tensor]) -> list[str]:
    """What each parameter is called in ``state``: a tied one has several names, of which a file holds one only."""
    names = set(state.names())
    known = {*buffers, *(name for tied in parameters.values() for name in tied)}
    unknown = sorted(name for name in names - known if not name.endswith("_extra_state"))
    found = []
    for tied in parameters.values():
        name = next((name for name in tied if name in names), None)
        if name is None:
            hint = f" (it has {unknown[0]!r}, which the model has not)" if unknown else ""
            raise ValueError(f"{state.label} has no parameter {tied[0]!r}{hint}: it belongs to another model")
        found.append(name)
    if unknown:
        raise ValueError(f"{state.label} has {unknown[0]!r}, which the model has not: it belongs to another model")
    return found


def _check_shapes(state: Source, targets: Mapping[str, Tensor]) -> None:
    names = set(state.names())
    for name, target in targets.items():
        if name in names and state.shape(name) != tuple(target.shape):
            raise ValueError(
                f"{name!r} has the shape {state.shape(name)} in {state.label}, {tuple(target.shape)} in the model"
            )


def _whole(state: Source, name: str, own: set[int]) -> Tensor:
    shape = state.shape(name)
    value = state.rows(name, 0, shape[0] if shape else 1)
    return value.clone() if value.untyped_storage().data_ptr() in own else value


def _mixture(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Σ c_k v_k in float64 for shares that sum to 1; exactly v_k where all others are 0."""
    first = values[0]
    for value, share in zip(values, shares, strict=True):
        if share == 1 and sum(map(abs, shares)) == 1:
            return value
    if not first.is_floating_point():
        return first
    origin = exact(first)
    mixed = origin.clone()
    for value, share in zip(values[1:], shares[1:], strict=True):
        mixed.add_(exact(value).to(origin) - origin, alpha=share)
    return mixed
