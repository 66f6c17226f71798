"""What the current model is compared with: earlier weights, or the same weights on noised inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from steppe.errors import unknown_name
from steppe.memory import Start
from steppe.passes import View
from steppe.randomness import RandomState, undisturbed
from steppe.shards import local, locals_of
from steppe.trust.noise import InputNoise
from steppe.vectors import widen


@runtime_checkable
class Reference(Protocol):
    """Write your own by giving a class this method; it may also have what every part may have (:mod:`steppe.parts`)."""

    def outputs(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], view: View) -> Any:
        """What the reference says about these inputs; ``None`` where it is the current model itself."""


class Previous:
    """θ_{t−1}: the model one step ago. No copy of its own: the engine's restore buffer still holds it.

    In the first step there is none, and the divergence is 0. After a climb whose step was not made (skipped by a
    ``GradScaler``, or interrupted) the buffer holds the present weights: the divergence is 0 once more.
    """

    needs_previous = True

    def outputs(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], view: View) -> Any:
        if view.previous is None:
            return None
        with view.replaced(view.previous):
            return model(*args, **kwargs)

    def __repr__(self) -> str:
        return "Previous()"


class Initial:
    """θ_0: the pre-trained model, as it is before the first step (or when the optimizer's state is first saved)."""

    remembers: Mapping[str, Start] = {"initial": "weights"}

    def outputs(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], view: View) -> Any:
        weights = view.remember("initial")
        with view.replaced(dict(zip(view.parameters, weights, strict=True))):
            return model(*args, **kwargs)

    def __repr__(self) -> str:
        return "Initial()"


class ExponentialMean:
    """θ̄_t = β θ̄_{t−1} + (1 − β) θ_t, θ̄_0 = θ_0: the mean of past weights, as in MESA (Du et al. 2022).

    Args:
        decay: β in [0, 1); the paper uses 0.999.

    Raises:
        ValueError: out of range.
    """

    remembers: Mapping[str, Start] = {"mean": "weights"}

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay

    def outputs(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], view: View) -> Any:
        mean = view.remember("mean")
        with view.replaced(dict(zip(view.parameters, mean, strict=True))):
            return model(*args, **kwargs)

    @torch.no_grad()
    def stepped(self, view: View) -> None:
        """Move the mean towards the new weights."""
        weights = [widen(w) for w in locals_of(view.parameters)]
        torch._foreach_lerp_(view.remember("mean"), weights, 1 - self.decay)

    def __repr__(self) -> str:
        return f"ExponentialMean(decay={self.decay})"


class Noise:
    """The same model on x + z, z ~ N(0, σ²): for token ids, on their embeddings.

    Args:
        sigma: σ, see :class:`~steppe.trust.noise.InputNoise`.
        embedding: the module whose output is noised where the inputs are token ids.
    """

    def __init__(self, sigma: float = 0.1, embedding: nn.Module | None = None) -> None:
        self.noise = InputNoise(sigma, embedding)

    def outputs(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], view: View) -> Any:
        with self.noise.on(model, view.seed):
            return model(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Noise(sigma={self.noise.sigma})"


@torch.no_grad()
def ask(
    reference: Reference,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    view: View,
    *,
    evaluation: bool,
    random: RandomState | None = None,
) -> Any:
    """What a reference says, without a trace in modes, random generators and running statistics.

    Args:
        reference: who is asked; ``None`` comes back where it is the current model.
        model: the module to call.
        args: what it is called with.
        kwargs: the same by keyword.
        view: the step.
        evaluation: ask in evaluation mode instead of the model's.
        random: ask with this random state instead of the present one.
    """
    modes = {module: module.training for module in model.modules()} if evaluation else {}
    try:
        with undisturbed({local(p).device for p in model.parameters()}), view.unrecorded():
            if random is not None:
                random.restore()
            if evaluation:
                model.eval()
            return reference.outputs(model, args, kwargs, view)
    finally:
        for module, mode in modes.items():
            module.training = mode


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``inputs`` as a model is called with them: a tensor, a tuple or list, or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def reference(
    name: str | Reference, *, sigma: float = 0.1, decay: float = 0.999, embedding: nn.Module | None = None
) -> Reference:
    """The reference of that name (``previous``, ``initial``, ``ema``, ``noise``); one of your own stays what it is.

    Raises:
        ValueError: the name is not known (with near matches).
        TypeError: it is neither a name nor has the method ``outputs``.
    """
    if isinstance(name, str):
        known: dict[str, Callable[[], Reference]] = {
            "previous": Previous,
            "initial": Initial,
            "ema": lambda: ExponentialMean(decay),
            "noise": lambda: Noise(sigma, embedding),
        }
        if name not in known:
            raise unknown_name("reference", name, known)
        return known[name]()
    if isinstance(name, Reference) and not isinstance(name, type):
        return name
    raise TypeError(f"a reference is a name or has a method outputs(model, args, kwargs, view), got {name!r}")
