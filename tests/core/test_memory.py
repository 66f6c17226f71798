"""How much a step takes, in copies of the weights over the base optimizer's own; test_cuda asks the allocator."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import EVERY
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = {
    **dict.fromkeys(["sam", "asam", "fisher", "disam", "exact"], 1),
    **dict.fromkeys(["tram", "tram-noise", "tram-fisher", "tram-fisher-shared"], 1),
    **dict.fromkeys(["gsam", "sagm", "disam+sagm", "disam+tram+sagm", "half of the batch"], 2),
    **dict.fromkeys(["tram-initial", "tram-ema", "friendly", "vasso"], 2),
    **dict.fromkeys(["looksam", "disam+looksam"], 3),
}


class Live(TorchDispatchMode):
    """The bytes of all tensors that are alive, and the most there have been."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}
        self.now = self.peak = 0

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.storages:
            self.storages[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self.storages.pop(key, 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return result


def large_model(device: str = "cpu", width: int = 192) -> nn.Module:
    """All weights: four samples' activations are nothing beside them."""
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(8))).to(device)


def stepper(name: str | None, model: nn.Module) -> Callable[[], object]:
    """Makes a step of a method, or of the base optimizer alone."""
    parameters = list(model.parameters())
    base = torch.optim.SGD(parameters, lr=0.01)
    optimizer = EVERY[name](base, model) if name is not None else None
    width, device = len(parameters[0]), parameters[0].device
    x, y = torch.randn(4, width, device=device), torch.zeros(4, dtype=torch.long, device=device)
    domain = torch.arange(4, device=device) % 2

    def closure() -> Tensor:
        base.zero_grad()
        if optimizer is None:
            loss = cross_entropy(model(x), y)
        else:
            inputs, labels, domains = optimizer.ascent_batch(x, y, domain=domain)
            loss = optimizer.objective(cross_entropy(model(inputs), labels, reduction="none"), domains)
        loss.backward()
        return loss

    return lambda: (base if optimizer is None else optimizer).step(closure)


def peak(name: str | None) -> float:
    """The largest number of copies of the weights in a step that is not one of the first."""
    model = large_model()
    with Live() as live:
        for parameter in model.parameters():
            live.note(parameter)
        weights, step = live.now, stepper(name, model)
        for _ in range(2):
            step()
        live.peak = 0
        for _ in range(2):  # one that climbs, one that re-uses it
            step()
    return live.peak / weights


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_the_weights_over_the_base_optimizer(name) -> None:
    assert peak(name) - peak(None) == pytest.approx(COPIES[name], abs=0.1)


def test_the_base_optimizer_takes_weights_and_gradients() -> None:
    assert peak(None) == pytest.approx(2, abs=0.1)
