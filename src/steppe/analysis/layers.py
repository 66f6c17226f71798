"""Layers by name, and what goes into them or comes out of them in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from steppe.errors import unknown_name

INPUT = ":input"
"""After a module's name: what goes into it, instead of what comes out."""


def head_input(model: nn.Module, x: Any) -> str:
    """The name of the input of the linear layer that is called last, from one forward pass on ``x``.

    Raises:
        ValueError: none is called.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    called: list[str] = []
    with watched(model, [name + INPUT for name in linear], lambda name, _: called.append(name)):
        model(x)
    if not called:
        raise ValueError("the model calls no nn.Linear, before which features could be taken: name the layers")
    return called[-1]


@contextmanager
def watched(model: nn.Module, names: Sequence[str], keep: Callable[[str, Any], None]) -> Iterator[None]:
    """Inside, ``keep(name, value)`` is called with what goes into, or comes out of, each layer."""
    modules = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as stack:
        for name in names:
            if name in modules:
                handle = modules[name].register_forward_hook(lambda _m, _x, out, name=name: keep(name, out))
            else:
                handle = modules[name.removesuffix(INPUT)].register_forward_pre_hook(
                    lambda _m, args, kwargs, name=name: keep(name, (args, kwargs)), with_kwargs=True
                )
            stack.callback(handle.remove)
        yield


def known_layers(model: nn.Module, layers: Sequence[str] | None) -> tuple[str, ...] | None:
    """The layers' names, each once; ``None`` where none were given.

    Raises:
        SteppeError: the model has no such layer (with near matches).
        ValueError: there are none.
    """
    if layers is None:
        return None
    names = (layers,) if isinstance(layers, str) else tuple(dict.fromkeys(layers))
    known = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in known and name.removesuffix(INPUT) not in known:
            raise unknown_name("layer", name, (each for each in known if each))
    if not names:
        raise ValueError("layers is empty: name modules, or leave it out for the features before the head")
    return names
