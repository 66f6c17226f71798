"""What the engine promises around the mathematics: weights and running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import MAKERS, batches, closure_for, losses_of, network, weights
from torch import nn

import steppe

method = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


# --- weights ---


@method
def test_the_second_pass_sees_other_weights_and_the_step_starts_from_w(make) -> None:
    model, problem = network(), batches(1)[0]
    before = weights(model)
    optimizer = make(torch.optim.SGD(model.parameters(), lr=0.0))
    seen = []
    optimizer.step(closure_for(optimizer, model, problem, lambda _: seen.append(weights(model))))
    assert torch.equal(seen[0], before)
    assert (seen[-1] - before).norm() > 1e-3
    assert torch.equal(weights(model), before)


@method
def test_an_exception_anywhere_leaves_w(make) -> None:
    model, problem = network(), batches(1)[0]
    optimizer = make(torch.optim.SGD(model.parameters(), lr=0.1))
    passes = 3 if optimizer.needs_clean_pass else 2
    for moment in [k / 2 for k in range(2 * passes)]:
        before = weights(model)

        def stop(call, moment=moment) -> None:
            if call == moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            optimizer.step(closure_for(optimizer, model, problem, stop))
        assert torch.equal(weights(model), before)
    optimizer.step(closure_for(optimizer, model, problem))  # and the optimizer goes on as if nothing had been
    fresh = network()
    reference = make(torch.optim.SGD(fresh.parameters(), lr=0.1))
    reference.step(closure_for(reference, fresh, problem))
    assert torch.equal(weights(model), weights(fresh))


@pytest.mark.parametrize("failing", ["_foreach_copy_", "_foreach_add_", "_foreach_lerp_"])
def test_a_failure_inside_the_engine_leaves_w(failing, monkeypatch) -> None:
    """As when memory runs out in the middle of the climb."""
    model, problem = network(), batches(1)[0]
    optimizer = steppe.SAGM(torch.optim.SGD(model.parameters(), lr=0.1, foreach=False))
    real, calls = getattr(torch, failing), []

    def fail_once(*args, **kwargs):
        result = real(*args, **kwargs)
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("planted")
        return result

    monkeypatch.setattr(torch, failing, fail_once)
    before = weights(model)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step(closure_for(optimizer, model, problem))
    assert torch.equal(weights(model), before)


def test_a_zero_gradient_gives_no_climb_and_no_nan() -> None:
    for make in MAKERS.values():
        parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = make(torch.optim.SGD([parameter], lr=0.1))

        def closure(parameter=parameter, optimizer=optimizer):
            optimizer.zero_grad()
            losses = (parameter * 0).sum() + torch.ones(4)
            loss = optimizer.objective(losses, torch.tensor([0, 0, 1, 1]))
            loss.backward()
            return loss

        optimizer.step(closure)
        assert torch.equal(parameter.detach(), torch.tensor([1.0, -2.0]))
        assert optimizer.diagnostics["loss_rise"] == 0


@method
def test_rho_zero_is_the_base_optimizer_and_one_pass(make) -> None:
    problems = batches(5)
    model, plain = network(), network()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = make(base, rho=0.0)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    calls = []
    for problem in problems:
        optimizer.step(closure_for(optimizer, model, problem, calls.append))
        reference.zero_grad()
        losses_of(plain, problem).mean().backward()
        reference.step()
    assert not optimizer.climbs
    assert len(calls) == 2 * len(problems)
    assert torch.equal(weights(model), weights(plain))


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5),
    rhos=st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.1, 2.0])), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_shapes_and_groups(shapes, rhos, dtype) -> None:
    """Scalars, empty tensors, one group a parameter with or without its own ρ: ε is ρ_group g / ‖g‖ over all."""
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    groups = [
        {"params": [p], **({} if rho is None else {"rho": rho})} for p, rho in zip(parameters, rhos, strict=False)
    ]
    gradients = [torch.randn_like(p) for p in parameters]
    optimizer = steppe.SAM(torch.optim.SGD(groups, lr=0.1), rho=0.7)
    before = [p.detach().clone() for p in parameters]
    with optimizer.climbing():
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
    radii = [0.7 if rho is None else rho for rho in rhos][: len(parameters)]
    norm = torch.cat([g.reshape(-1) for g, rho in zip(gradients, radii, strict=True) if rho] or [torch.ones(1)]).norm()
    with optimizer.perturbed():
        for p, w, g, rho in zip(parameters, before, gradients, radii, strict=True):
            expected = w + rho * g / norm if norm > 0 else w
            torch.testing.assert_close(p.detach(), expected)
            p.grad = torch.ones_like(p)
    for p, w in zip(parameters, before, strict=True):
        assert torch.equal(p.detach(), w)


def test_parameter_groups_choose_who_climbs() -> None:
    model = network(normalise=True)
    for perturb, expected in {"weights": {"0.weight", "3.weight"}, "norms": {"1.weight", "1.bias"}}.items():
        base = torch.optim.SGD(steppe.parameter_groups(model, perturb), lr=0.0)
        optimizer = steppe.SAM(base, model=model)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        moved = set()

        def look(_, before=before, moved=moved) -> None:
            moved |= {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}

        optimizer.step(closure_for(optimizer, model, batches(1)[0], look))
        assert moved == expected
        assert {id(p) for p in optimizer.parameters()} == {id(p) for p in model.parameters()}
    with pytest.raises(ValueError, match="no trainable parameter"):
        steppe.parameter_groups(network(), "norms")
    with pytest.raises(ValueError, match="'weights' or 'norms'"):
        steppe.parameter_groups(model, "biases")


def test_frozen_unused_and_tied_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight  # tied
    model[0].bias.requires_grad_(False)  # frozen
    unused = nn.Parameter(torch.ones(3))
    before = copy.deepcopy(model.state_dict())
    optimizer = steppe.GSAM(torch.optim.SGD([*model.parameters(), unused], lr=0.1), model=model)
    x = torch.randn(5, 4)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(unused, torch.ones(3))
    assert torch.equal(model[0].bias, before["0.bias"])
    assert model[0].weight is model[1].weight
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_a_parameter_that_only_the_second_pass_reaches() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = steppe.SAGM(torch.optim.SGD([a, b], lr=1.0), alpha=0.0)
    with optimizer.climbing():
        a.sum().backward()
    with optimizer.perturbed():
        (a.sum() + b.sum()).backward()
    optimizer.step()
    torch.testing.assert_close(a.detach(), torch.zeros(2))
    torch.testing.assert_close(b.detach(), torch.full((2,), 0.5))  # ½ (0 + 1)


def test_parameters_swapped_by_a_library_are_noticed() -> None:
    model, problem = network(), batches(1)[0]
    optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.step(closure_for(optimizer, model, problem))
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        layer.bias = nn.Parameter(layer.bias.detach().clone())
    optimizer.param_groups[0]["params"] = list(model.parameters())
    before = weights(model)
    optimizer.step(closure_for(optimizer, model, problem))
    assert not torch.equal(weights(model), before)
    assert len(optimizer._climb.displacement.store._tensors) == 4  # the old copies are freed


def test_same_seed_same_bits() -> None:
    results = []
    for _ in range(2):
        model = network(normalise=True)
        optimizer = steppe.DISAM(torch.optim.AdamW(model.parameters(), lr=0.01), model=model)
        for problem in batches(5):
            optimizer.step(closure_for(optimizer, model, problem))
        results.append(weights(model))
    assert torch.equal(*results)


# --- running statistics ---


@method
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_counts_each_batch_once_at_clean_weights(make, momentum) -> None:
    model = network(normalise=True)
    model[1].momentum = momentum
    problem = batches(1)[0]
    reference = copy.deepcopy(model)
    reference(problem.x)  # one forward pass at w
    optimizer = make(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    optimizer.step(closure_for(optimizer, model, problem))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(reference.named_buffers())[name]), name
    assert model[1].num_batches_tracked == 1


def test_running_statistics_come_back_after_an_exception_too() -> None:
    model = network(normalise=True)
    optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)

    def stop(call) -> None:
        if call == 1:
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        optimizer.step(closure_for(optimizer, model, batches(1)[0], stop))
    assert model[1].num_batches_tracked == 1


def test_only_buffers_of_the_state_dict_are_kept() -> None:
    model = network(normalise=True)
    model.register_buffer("mask", torch.zeros(3), persistent=False)
    model.register_buffer("counter", torch.zeros((), dtype=torch.long))
    optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)

    def touch(call) -> None:
        if call in (0, 1):
            model.mask.add_(1)
            model.counter.add_(1)

    optimizer.step(closure_for(optimizer, model, batches(1)[0], touch))
    assert model.mask.tolist() == [2, 2, 2]
    assert model.counter == 1
