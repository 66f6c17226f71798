"""Gaussian noise on a model's inputs: x + z, z ~ N(0, σ²)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from steppe.passes import in_backward


class InputNoise:
    """Adds noise to what a model is called with: to floating-point inputs, or to the embeddings of token ids.

    The noise has a generator of its own, so that dropout is not shifted by it. Every call has other noise; only a call
    without gradient has that of the next call with one, so that a reference is asked about what the model will see, and
    a recomputation (activation checkpointing) that of the call it repeats.

    Args:
        sigma: σ ≥ 0, in the units of the (normalised) inputs or embeddings; TRAM's paper uses 0.1.
        embedding: the module whose output is noised where the inputs are token ids; by default what
            ``model.get_input_embeddings()`` gives, or the first ``nn.Embedding`` of the model.

    Raises:
        ValueError: σ is negative or not a number.
    """

    def __init__(self, sigma: float = 0.1, embedding: nn.Module | None = None) -> None:
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma must be at least 0 and finite, got {sigma}")
        self.sigma = sigma
        self.embedding = embedding
        self.calls = 0
        """How many calls have been noised so far."""

    @contextmanager
    def on(self, model: nn.Module, seed: Callable[[], int]) -> Iterator[None]:
        """Inside, every call of ``model`` sees noise.

        Args:
            model: the module as it is called.
            seed: gives another seed at each call (:class:`~steppe.passes.View`).

        Raises:
            TypeError: a call has no floating-point input, and there is no embedding to noise instead.
            RuntimeError: the embedding that was to be noised was not called.
        """
        generators: dict[torch.device, torch.Generator] = {}
        present: int | None = None
        held = False
        embedded, unnoised = False, False

        def noised(x: Tensor) -> Tensor:
            generator = generators.get(x.device)
            if generator is None:
                assert present is not None  # set before each call
                generator = generators[x.device] = torch.Generator(x.device).manual_seed(present)
            # Drawn in the order of the indices whatever the layout of x: strided draws are eight times slower on a CPU.
            z = torch.empty_like(x, memory_format=torch.contiguous_format).normal_(generator=generator)
            return torch.add(x, z, alpha=self.sigma)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            nonlocal embedded, unnoised, present, held
            self.calls += 1
            present = seed() if present is None or not (held or in_backward()) else present
            held = not torch.is_grad_enabled()
            generators.clear()
            changed = noised_inputs(args, kwargs, noised)
            embedded = unnoised = changed is None
            if changed is not None:
                return changed
            if self._embedding(model) is None:
                raise TypeError(
                    "the model's inputs are not floating point and it has no embedding: pass embedding= (tensors "
                    "inside dicts or lists are not seen)"
                )
            return args, kwargs

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def after(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            nonlocal unnoised
            unnoised = False
            return noised(output) if embedded else None

        handles = [model.register_forward_pre_hook(before, with_kwargs=True)]
        embedding = self._embedding(model)
        if embedding is not None:
            handles.append(embedding.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if unnoised:
            name = type(embedding).__name__
            raise RuntimeError(f"the {name} whose output was to be noised was not called by the model: pass embedding=")

    def _embedding(self, model: nn.Module) -> nn.Module | None:
        if self.embedding is not None:
            return self.embedding
        getter = getattr(model, "get_input_embeddings", None)
        if callable(getter):
            with suppress(NotImplementedError):  # transformers' models for pictures have the method, and no answer
                found: nn.Module = getter()
                return found
        return next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)


def noised_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], noised: Any
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with the first floating-point tensor noised; ``None`` where there is none.

    Attention masks are not inputs: keyword arguments that have ``mask`` in their name do not count.
    """
    for i, value in enumerate(args):
        if isinstance(value, Tensor) and value.is_floating_point():
            return (*args[:i], noised(value), *args[i + 1 :]), dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and "mask" not in name:
            return args, {**kwargs, name: noised(value)}
    return None
