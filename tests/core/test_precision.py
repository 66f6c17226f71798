"""Autocast, half-precision weights and their rounding, diagnostics, GradScaler."""

from __future__ import annotations

import warnings

import pytest
import torch
from problems import MAKERS, batches, closure_for, losses_of, network, weights
from torch import nn
from torch.nn.functional import cross_entropy

import steppe

method = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def test_the_whole_step_inside_one_autocast_region() -> None:
    """Autocast caches the cast of a weight: without clearing it, the second pass would run at w, and SAM be ERM."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 32), torch.randint(0, 3, (16,))
    rises = []
    for whole in (True, False):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3))
        optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)

        def closure(model=model, optimizer=optimizer, whole=whole):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=True):
                loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=whole):
            for _ in range(3):
                optimizer.step(closure)
        rises.append((float(optimizer.diagnostics["loss_rise"]), weights(model)))
    assert rises[0][0] > 0.05
    assert rises[0][0] == rises[1][0]
    assert torch.equal(rises[0][1], rises[1][1])


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


# --- GradScaler ---


def scaled_run(make, how: str, scale: float, model, problems, overflow_in=None):
    optimizer = make(torch.optim.AdamW(model.parameters(), lr=0.01), model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    for problem in problems:
        calls = iter(range(9))

        def closure(problem=problem, calls=calls):
            call = next(calls)
            optimizer.zero_grad()
            loss = optimizer.objective(losses_of(model, problem), problem.domain)
            scaler.scale(loss * (torch.inf if call == overflow_in else 1)).backward()
            return loss

        if how == "closure":
            optimizer.step(closure, scaler=scaler)
        else:
            if optimizer.needs_clean_pass:
                with optimizer.clean():
                    closure()
            with optimizer.climbing(scaler=scaler):
                closure()
            with optimizer.perturbed():
                closure()
            scaler.step(optimizer)
        scaler.update()
    return optimizer, scaler


@method
@pytest.mark.parametrize("how", ["closure", "contexts"])
def test_gradscaler_scales_both_passes_and_changes_nothing(make, how) -> None:
    problems = batches(5)
    plain = network()
    reference = make(torch.optim.AdamW(plain.parameters(), lr=0.01))
    for problem in problems:
        reference.step(closure_for(reference, plain, problem))
    model = network()
    scaled_run(make, how, 2.0**12, model, problems)
    torch.testing.assert_close(weights(model), weights(plain), atol=1e-12, rtol=1e-9)


@method
@pytest.mark.parametrize("how", ["closure", "contexts"])
def test_overflow_in_any_pass_skips_the_step(make, how) -> None:
    passes = 3 if make(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1)).needs_clean_pass else 2
    for overflow_in in range(passes):
        model, skipped = network(normalise=True), network(normalise=True)
        before, problem = weights(model), batches(1)[0]
        skipped(problem.x)  # what a skipped ERM step does to BatchNorm
        optimizer, scaler = scaled_run(make, how, 1024.0, model, [problem], overflow_in)
        assert torch.equal(weights(model), before)
        assert not optimizer.base.state
        assert scaler.get_scale() == 512
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, dict(skipped.named_buffers())[name])
        # and the next step is a good one
        fresh = network(normalise=True)
        fresh.load_state_dict(model.state_dict())
        reference = make(torch.optim.AdamW(fresh.parameters(), lr=0.01), model=fresh)
        reference.step(closure_for(reference, fresh, problem))
        closure = closure_for(optimizer, model, problem)
        optimizer.step(closure)
        assert torch.equal(weights(model), weights(fresh))
