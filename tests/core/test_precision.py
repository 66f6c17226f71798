"""Autocast, half-precision weights and their rounding, diagnostics."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from every_method import Classifier, batch, train
from problems import EVERY, batches, closure_for, losses_of, network, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe

# --- autocast ---


def radii_and_weights(name: str, *, cached: bool, whole: bool = True) -> tuple[list[float], Tensor]:
    """Four steps under bfloat16 autocast: the whole of each in one region, or only its forward passes."""
    model = Classifier(dropout=0.1)
    optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), model)
    region = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached)
    torch.manual_seed(0)
    if whole:
        with region:
            return train(optimizer, model, range(4)), weights(model)
    return train(optimizer, lambda x: region(model)(x).float(), range(4)), weights(model)


@pytest.mark.parametrize("name", EVERY)
def test_the_whole_step_inside_one_autocast_region(name) -> None:
    """Autocast caches the cast of a weight: without clearing it, the second pass would run at w, and SAM be ERM; and a
    reference, for which the weights change places, would be the model itself.
    """
    radii, after = radii_and_weights(name, cached=True)
    for other in (radii_and_weights(name, cached=False), radii_and_weights(name, cached=True, whole=False)):
        assert radii == other[0]
        assert torch.equal(after, other[1])


@pytest.mark.parametrize("name", ["sam", "tram-initial"])
def test_the_trap_is_there(name, monkeypatch) -> None:
    """What the test above would see, were the cache not cleared."""
    radii, after = radii_and_weights(name, cached=True)
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    trapped = radii_and_weights(name, cached=True)
    assert not torch.equal(trapped[1], after)
    assert (trapped[0] == radii) == (name == "sam")


# --- half-precision weights ---


def half_model(dtype=torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).to(dtype)


def half_closure(optimizer, model, x, y):
    def closure():
        optimizer.zero_grad()
        losses = cross_entropy(model(x.to(model[0].weight.dtype)).float(), y, reduction="none")
        loss = optimizer.objective(losses)
        loss.backward()
        return loss

    return closure


def test_half_precision_weights_are_measured_and_warned_about() -> None:
    model, x, y = half_model(), torch.randn(8, 64), torch.randint(0, 3, (8,))
    optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.001)
    before = weights(model)
    with pytest.warns(UserWarning, match="rounding to torch.bfloat16 eats the climb"):
        optimizer.step(half_closure(optimizer, model, x, y))
    measured = optimizer.diagnostics
    # By hand: ε and what is left of it after adding it to bf16 weights.
    fresh = half_model()
    cross_entropy(fresh(x.bfloat16()).float(), y).backward()
    g = torch.cat([p.grad.float().reshape(-1) for p in fresh.parameters()])
    wanted = 0.001 * g / g.norm()
    left = (before + wanted.bfloat16()).float() - before.float()
    assert measured["realised"].item() == pytest.approx((left.norm() / wanted.norm()).item(), rel=0.02)
    cosine = torch.cosine_similarity(left, wanted, dim=0).item()
    assert measured["cosine"].item() == pytest.approx(cosine, abs=0.02)
    assert cosine < 0.9


def test_the_climb_on_a_float32_copy_keeps_epsilon_and_brings_half_weights_back() -> None:
    model, x, y = half_model(), torch.randn(8, 64), torch.randint(0, 3, (8,))
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = steppe.SAM(base, rho=0.001, climb_dtype=torch.float32, diagnose=True)
    before = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(half_closure(optimizer, model, x, y))
    assert torch.equal(weights(model), before)
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}
    assert optimizer.diagnostics["realised"].item() == pytest.approx(1.0, abs=1e-2)
    assert optimizer.diagnostics["cosine"].item() == pytest.approx(1.0, abs=1e-4)


def half_steps(name: str, dtype: torch.dtype, climb_dtype: torch.dtype | None = None) -> tuple[Any, list[Any], Tensor]:
    """Six steps of a classifier whose weights are in ``dtype``, and the diagnostics of each."""
    model = Classifier().to(dtype)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = EVERY[name](base, model, climb_dtype=climb_dtype, diagnose=True)
    measured = []
    torch.manual_seed(0)
    for number in range(6):
        x, y, domain = batch(number)

        def closure(x=x, y=y, domain=domain) -> Tensor:
            optimizer.zero_grad()
            inputs, labels, domains = optimizer.ascent_batch(x, y, domain=domain)
            logits = model(inputs.to(model.first.weight.dtype))
            loss = optimizer.objective(cross_entropy(logits.float(), labels, reduction="none"), domains)
            loss.backward()
            return loss

        optimizer.step(closure)
        measured.append({key: float(value) for key, value in optimizer.diagnostics.items()})
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {dtype}
    assert {buffer.dtype for buffer in model.buffers()} == {dtype, torch.long}
    return optimizer, measured, weights(model).double()


@pytest.mark.filterwarnings("ignore:rounding to torch")
@pytest.mark.parametrize("climb_dtype", [None, torch.float32], ids=["", "climb in float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EVERY)
def test_half_precision_weights(name, dtype, climb_dtype) -> None:
    """Every method stays near the same run with float32 weights, and its climb, taken in float32, is not rounded."""
    optimizer, measured, after = half_steps(name, dtype, climb_dtype)
    _, exact, expected = half_steps(name, torch.float32)
    noise = "noise" in name  # half precision draws other numbers
    reused = name == "everything"  # re-uses a correction that is all rounding in half precision
    eps = torch.finfo(dtype).eps
    assert (after - expected).abs().max() < (0.1 if reused else 4 * eps)
    for half, full in zip(measured, exact, strict=True):
        if not reused:
            assert half["radius"] == pytest.approx(full["radius"], rel=0.5 if noise else 10 * eps, abs=1e-4)
        if climb_dtype is not None:
            assert half["realised"] == pytest.approx(1, abs=1e-3)
            assert half["cosine"] == pytest.approx(1, abs=1e-4)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)


def test_references_of_half_precision_weights_are_kept_in_float32() -> None:
    """θ_0 as the weights were, so that d is 0; and a mean that moves by less than half precision can hold."""
    for name, kept in {"tram-initial": "initial", "tram-ema": "mean"}.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer, measured, _ = half_steps(name, torch.bfloat16)
        assert measured[0]["radius"] == 0 < measured[-1]["radius"]
        memory = optimizer.extra_state()["memory"]["radius"][kept]
        assert {tensor.dtype for tensor in memory.values()} == {torch.float32}
        rounded = [torch.equal(tensor, tensor.bfloat16().float()) for tensor in memory.values()]
        assert all(rounded) == (kept == "initial")


def test_a_first_step_without_a_climb_says_nothing_about_rounding() -> None:
    """TRAM's d is 0 in the first step: there is nothing to lose, and the warning is due at the second."""
    model, x, y = half_model(), torch.randn(8, 64), torch.randint(0, 3, (8,))
    optimizer = steppe.TRAM(torch.optim.SGD(model.parameters(), lr=0.01), model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(half_closure(optimizer, model, x, y))
    assert optimizer.diagnostics["realised"] == optimizer.diagnostics["cosine"] == 1
    with pytest.warns(UserWarning, match="rounding to torch.bfloat16 eats the climb"):
        optimizer.step(half_closure(optimizer, model, x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(half_closure(optimizer, model, x, y))


# --- diagnostics ---


def test_diagnostics_of_a_float32_step() -> None:
    model, problem = network(), batches(1)[0]
    optimizer = steppe.ASAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.3, eta=0.0, diagnose=True)
    losses_of(model, problem).mean().backward()
    g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    w = weights(model)
    epsilon = 0.3 * w**2 * g / (w * g).norm()
    optimizer.step(closure_for(optimizer, model, problem))
    measured = optimizer.diagnostics
    assert measured["gradient_norm"].item() == pytest.approx((w * g).norm().item())
    assert measured["perturbation_norm"].item() == pytest.approx(epsilon.norm().item())
    assert measured["radius"].item() == pytest.approx(0.3)
    assert measured["realised"].item() == pytest.approx(1.0)
    assert measured["cosine"].item() == pytest.approx(1.0)
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(w + epsilon, model.parameters())
        after = losses_of(model, problem).mean()
        torch.nn.utils.vector_to_parameters(w, model.parameters())
        rise = after - losses_of(model, problem).mean()
    assert measured["loss_rise"].item() == pytest.approx(rise.item())
