"""Accelerators without one: tensors of which only shape, dtype and device exist.

What would make the host wait for a device has no value to go on with there, and raises. The numbers are for test_cuda.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from every_method import Classifier, closure_of, weights
from problems import EVERY
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import steppe

without_values = pytest.mark.usefixtures("no_device")
method = pytest.mark.parametrize("name", EVERY)


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device that is not there has no random state, and a seed is a number from the CPU's generator."""
    generator = SimpleNamespace(get_rng_state=lambda device: None, set_rng_state=lambda state, device: None)
    monkeypatch.setattr("steppe.randomness._module", lambda device: generator)
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    monkeypatch.setattr(steppe.SharpnessAware, "_seed", lambda optimizer: 0)
    with FakeTensorMode():
        yield


class Transfers(TorchDispatchMode):
    """Every copy from one device to another: (from, to, shape, whether the host goes on meanwhile)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, torch.Size, bool]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        copies = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}
        if function in copies:
            source = args[copies[function]]
            if isinstance(source, Tensor) and source.device != result.device:
                waits_not = bool((kwargs or {}).get("non_blocking")) or args[2:] == (True,)
                self.seen.append((source.device.type, result.device.type, result.shape, waits_not))
        return result


def steps(name: str, model: nn.Module, device: str, **options: Any) -> Transfers:
    """Some steps with made-up gradients: autograd needs a real device."""
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = EVERY[name](base, model, **options)
    x, y = torch.randn(12, 6, device=device), torch.randint(0, 3, (12,), device=device)
    domain = torch.randint(0, 3, (12,), device=device)

    def closure() -> Tensor:
        optimizer.zero_grad()
        inputs, labels, domains = optimizer.ascent_batch(x, y, domain=domain)
        logits = model(inputs)
        loss = optimizer.objective(cross_entropy(logits, labels.to(logits.device), reduction="none"), domains)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        return loss.detach()

    optimizer.step(closure)
    with Transfers() as transfers:
        for _ in range(4):
            optimizer.step(closure)
    return transfers


@without_values
@method
def test_the_host_never_waits_for_the_device(name) -> None:
    with torch.device("cuda"):
        model = Classifier(dropout=0.5)
    assert steps(name, model, "cuda").seen == []


@without_values
@pytest.mark.parametrize("option", ["same_dropout", "diagnose"])
def test_nor_with_options(option) -> None:
    with torch.device("cuda"):
        model = Classifier(dropout=0.5)
    assert steps("everything", model, "cuda", **{option: True}).seen == []


@without_values
def test_waiting_would_be_seen() -> None:
    with pytest.raises(DataDependentOutputException):
        torch.ones((), device="cuda").item()
    with Transfers() as transfers:
        torch.ones(2, device="cuda").to("cpu", non_blocking=True)
        torch.ones(2, device="cuda").copy_(torch.ones(2))
    assert transfers.seen == [("cuda", "cpu", (2,), True), ("cpu", "cuda", (2,), False)]


class OnTwo(Classifier):
    """The first layers on an accelerator, the last one on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 16, device="cuda"), nn.BatchNorm1d(16, device="cuda")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(torch.tanh(self.norm(self.first(x)))).cpu())


@without_values
@pytest.mark.parametrize("name", [name for name in EVERY if "looksam" not in name and name != "everything"])
def test_parameters_on_two_devices(name) -> None:
    """Single numbers cross, and what comes to the CPU is waited for: it would be read before it is there.

    (Re-use reads its factor as a number where parameters are on the CPU, which waits by itself, and has no value here.)
    """
    transfers = steps(name, OnTwo(), "cuda")
    crossing = [each for each in transfers.seen if each[2] not in ((12, 16), (6, 16), (12,), (6,))]  # the model's own
    assert all(shape == () for _, _, shape, _ in crossing)
    to_the_host = [waits_not for _, to, _, waits_not in crossing if to == "cpu"]
    assert to_the_host
    assert not any(to_the_host)


@method
def test_the_default_device_is_left_to_the_user(name) -> None:
    """Under ``torch.set_default_device`` what the engine makes for itself is still where it belongs."""
    results = []
    for default in ("cpu", "meta"):
        model = Classifier(dropout=0.5)
        optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1), model, same_dropout=True, diagnose=True)
        closures = [closure_of(optimizer, model, number) for number in range(3)]
        torch.manual_seed(0)
        with torch.device(default):
            for closure in closures:
                optimizer.step(closure)
        assert float(optimizer.diagnostics["gradient_norm"]) > 0
        results.append(weights(model))
    assert torch.equal(*results)
