"""What only an accelerator can show; skipped where there is none (CI has none). What can do without: test_devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from every_method import Classifier, batch, weights
from problems import EVERY
from test_memory import COPIES, large_model, stepper
from test_scaler import fp16_training
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
method = pytest.mark.parametrize("name", EVERY)
NOISELESS = [
    name for name in EVERY if "noise" not in name and not name.startswith("tram-fisher") and name != "everything"
]
"""Every device draws its own noise."""


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def loss_of(optimizer: steppe.SharpnessAware, model: nn.Module, data: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, y, domain = optimizer.ascent_batch(*data[:2], domain=data[2])
    return optimizer.objective(cross_entropy(model(x), y, reduction="none"), domain)


def step(optimizer: steppe.SharpnessAware, model: nn.Module, data: tuple[Tensor, Tensor, Tensor]) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(optimizer, model, data)
        loss.backward()
        return loss

    optimizer.step(closure)


def on(device: str, number: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    x, y, domain = (tensor.to(device) for tensor in batch(number, dtype))
    return x, y, domain


# --- synchronisation ---


@method
@pytest.mark.parametrize("same_dropout", [False, True])
def test_a_step_does_not_synchronise_with_the_host(name, same_dropout) -> None:
    model = Classifier(dropout=0.5).cuda()
    base = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    optimizer, data = EVERY[name](base, model, same_dropout=same_dropout), on("cuda", 0)
    for _ in range(3):  # allocations and lazy initialisation, of steps that climb and steps that do not
        step(optimizer, model, data)
    before = weights(model)
    with no_synchronisation():
        for _ in range(4):
            step(optimizer, model, data)
    assert not torch.equal(weights(model), before)


@method
def test_the_passes_of_a_scaled_step_do_not_synchronise_either(name) -> None:
    """``GradScaler.step`` itself reads whether there was an overflow."""
    model = Classifier().cuda()
    optimizer, data = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.01), model), on("cuda", 0)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)

    def passes() -> None:
        for each in optimizer.passes(scaler):
            with each:
                optimizer.zero_grad()
                scaler.scale(loss_of(optimizer, model, data)).backward()

    for round_ in range(5):
        if round_ < 3:
            passes()
        else:
            with no_synchronisation():
                passes()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 1024


# --- the same numbers ---


@pytest.mark.parametrize("name", NOISELESS)
def test_the_accelerator_agrees_with_the_cpu(name) -> None:
    results = []
    for device in ("cpu", "cuda"):
        model = Classifier().double().to(device)
        optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model)
        for number in range(6):
            step(optimizer, model, on(device, number, torch.float64))
        results.append(weights(model).cpu())
    torch.testing.assert_close(results[1], results[0], atol=1e-10, rtol=0)


class OnTwo(Classifier):
    """The first layers on one device, the last one on another."""

    def place(self, first: str, last: str) -> OnTwo:
        for module in (self.first, self.norm):
            module.to(first)
        self.second.to(last)
        return self

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(x.to(self.first.weight.device))))
        return self.second(hidden.to(self.second.weight.device))


@pytest.mark.parametrize("name", NOISELESS)
def test_parameters_on_two_devices(name) -> None:
    results = []
    for first, last in (("cpu", "cpu"), ("cuda", "cpu"), ("cpu", "cuda")):
        model = OnTwo().double().place(first, last)
        optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, diagnose=True)
        for number in range(6):
            step(optimizer, model, on(last, number, torch.float64))
        assert float(optimizer.diagnostics["gradient_norm"]) > 0
        results.append(torch.cat([p.detach().cpu().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(results[2], results[0], atol=1e-10, rtol=0)


# --- precision ---


@method
def test_fp16_autocast_with_a_scaler_that_overflows(name) -> None:
    """A scale far too large at first: steps are skipped until it fits, then training goes on."""
    losses, scale = fp16_training(EVERY[name], "cuda", 40)
    assert scale < 2.0**24
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@method
def test_the_whole_step_inside_one_autocast_region(name, dtype) -> None:
    results = []
    for cached in (True, False):
        model = Classifier().cuda()
        optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1), model)
        torch.manual_seed(0)
        with torch.autocast("cuda", dtype=dtype, cache_enabled=cached):
            for number in range(3):
                step(optimizer, model, on("cuda", number))
        results.append(weights(model))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)


# --- randomness ---


@method
def test_the_same_masks_and_the_generator_as_after_one_pass(name) -> None:
    model = Classifier(dropout=0.5).cuda()
    masks: list[Tensor] = []
    model.dropout.register_forward_hook(
        lambda module, args, output: masks.append(output != 0) if torch.is_grad_enabled() else None
    )
    optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1), model, same_dropout=True)
    torch.cuda.manual_seed(0)
    step(optimizer, model, on("cuda", 0))
    after, parts = torch.cuda.get_rng_state(), optimizer._share.parts
    torch.cuda.manual_seed(0)
    for mask in masks[-1:] * parts:
        nn.Dropout(0.5)(torch.ones(mask.shape, device="cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), after)
    alike = [mask for mask in masks if parts == 1 and mask.shape == masks[-1].shape]
    assert all(torch.equal(mask, alike[0]) for mask in alike)


def test_noise_is_new_in_every_step() -> None:
    """The generator that gives the seeds is the CPU's, which nothing else draws from when all is on the device."""
    model = Classifier(dropout=0.5).cuda()
    optimizer = EVERY["tram-noise"](torch.optim.SGD(model.parameters(), lr=0.0), model)
    seen: list[Tensor] = []
    model.first.register_forward_pre_hook(
        lambda module, args: None if torch.is_grad_enabled() else seen.append(args[0].clone())
    )
    for _ in range(3):
        step(optimizer, model, on("cuda", 0))
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


# --- memory ---


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_the_weights_over_the_base_optimizer(name) -> None:
    def peak(method_name: str | None) -> float:
        torch.cuda.empty_cache()
        begin = torch.cuda.memory_allocated()
        model = large_model("cuda", width=1024)
        size = torch.cuda.memory_allocated() - begin
        make_step = stepper(method_name, model)
        for _ in range(2):
            make_step()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            make_step()
        return (torch.cuda.max_memory_allocated() - begin) / size

    stepper(None, large_model("cuda", width=1024))()  # cuBLAS takes its workspace
    assert peak(name) - peak(None) == pytest.approx(COPIES[name], abs=0.15)
