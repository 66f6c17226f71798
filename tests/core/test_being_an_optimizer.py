"""The engine as a ``torch.optim.Optimizer``: schedulers, hooks, clipping, misuse, and a part of a user's own."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from problems import batches, closure_for, losses_of, network, weights
from torch import nn

import steppe

# --- schedulers, hooks, being an optimizer ---


@pytest.mark.parametrize("attached_to", ["wrapper", "base"])
def test_a_scheduler_on_either_drives_both(attached_to) -> None:
    model, problem = network(), batches(1)[0]
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = steppe.SAM(base)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer if attached_to == "wrapper" else base, 1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            assert base.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.5**step
            optimizer.step(closure_for(optimizer, model, problem))
            scheduler.step()


def test_it_is_an_optimizer() -> None:
    model = network()
    base = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer = steppe.SAM(base)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": 0.3})
    assert base.param_groups[1]["rho"] == 0.3
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step(closure_for(optimizer, model, batches(1)[0]))
    assert seen == ["before", "after"]
    assert "SharpnessAware(Mean(), Euclidean(), Constant(0.05), Perturbed()" in repr(optimizer)
    copied = copy.deepcopy(optimizer)
    assert copied.param_groups is copied.base.param_groups
    assert copied.param_groups[0]["params"][0] is not optimizer.param_groups[0]["params"][0]


def test_a_step_without_passes_is_the_bases_and_warns_once() -> None:
    model, plain, problem = network(), network(), batches(1)[0]
    optimizer = steppe.SAM(torch.optim.AdamW(model.parameters(), lr=0.1))
    reference = torch.optim.AdamW(plain.parameters(), lr=0.1)
    for each in (model, plain):
        losses_of(each, problem).mean().backward()
    with pytest.warns(UserWarning, match="plain step of the base"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    reference.step()
    reference.step()
    assert torch.equal(weights(model), weights(plain))


def test_clipping_between_the_passes_and_the_step() -> None:
    model, problem = network(), batches(1)[0]
    optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=1.0))
    before = weights(model)
    closure = closure_for(optimizer, model, problem)
    with optimizer.climbing():
        closure()
    with optimizer.perturbed():
        closure()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    assert (weights(model) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


# --- misuse ---


def test_misuse_is_named() -> None:
    model, problem = network(), batches(1)[0]
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def backward(optimizer) -> None:
        optimizer.zero_grad()
        optimizer.objective(losses_of(model, problem), problem.domain).backward()

    disam = steppe.DISAM(sgd)
    backward(disam)
    with pytest.raises(RuntimeError, match="make the first pass inside climbing"), disam.perturbed():
        pass
    with pytest.raises(RuntimeError, match=r"optimizer.objective\(losses, domain\) was not called"), disam.climbing():
        losses_of(model, problem).mean().backward()
    with pytest.raises(ValueError, match="needs the domain of each sample"), disam.climbing():
        disam.objective(losses_of(model, problem)).backward()
    sam = steppe.SAM(sgd, same_dropout=True)
    backward(sam)
    with pytest.raises(RuntimeError, match=r"same_dropout=True: make the first pass inside climb"), sam.perturbed():
        pass
    both = steppe.DISAM(sgd, descent=steppe.SurrogateGap())
    with pytest.raises(RuntimeError, match=r"optimizer.clean\(\).*passes\(\).*shared=True"), both.climbing():
        pass
    sam = steppe.SAM(sgd)
    with sam.climbing():
        backward(sam)
    with pytest.raises(RuntimeError, match=r"not followed by perturbed"):
        sam.step()
    with pytest.raises(RuntimeError, match="cannot begin inside another"), sam.climbing(), sam.climbing():
        pass
    sam.zero_grad()
    with pytest.raises(RuntimeError, match="no gradient to climb"), sam.perturbed():
        pass
    backward(sam)
    with pytest.raises(RuntimeError, match="no gradient at w"), sam.perturbed():
        pass
    with pytest.raises(TypeError, match="sharpness-aware already"):
        steppe.SAM(sam)
    with pytest.raises(TypeError, match="LBFGS"):
        steppe.SAM(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer .* steppe.SAM\(torch.optim.SGD"):
        steppe.SAM(model.parameters(), torch.optim.SGD, lr=0.1)  # as other libraries have it
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):
        steppe.SharpnessAware(model.parameters())
    with pytest.raises(TypeError, match=r"unknown argument 'modell'; did you mean 'model'\?"):
        steppe.GSAM(sgd, modell=model)
    for make in (steppe.SAM, steppe.TRAM):
        with pytest.raises(TypeError, match=r"model must be .*torch.nn.Module.*, got generator"):
            make(sgd, model=model.parameters())
    with pytest.raises(TypeError, match="that the closure calls, got NoneType"):
        steppe.TRAM(sgd, None)
    with pytest.raises(TypeError, match="Mean cannot be the geometry: it lacks"):
        steppe.SharpnessAware(sgd, geometry=steppe.Mean())
    with pytest.raises(TypeError, match="is a class, not an instance"):
        steppe.SharpnessAware(sgd, geometry=steppe.Euclidean)
    with pytest.raises(TypeError, match="Constant cannot be the radius: it is a class"):
        steppe.SAM(sgd, rho=steppe.Constant)
    for domains in ([0, 1], problem.domain.numpy()):
        with pytest.raises(TypeError, match=r"domains must be a tensor of integers, got \w+: torch.as_tensor"):
            sam.objective(losses_of(model, problem), domains)
    with pytest.raises(TypeError, match="domains must be a tensor"):
        steppe.SAM(sgd, m=2).ascent_batch(problem.x, domain=problem.domain.tolist())
    with pytest.raises(TypeError, match="a radius is a number"):
        steppe.SharpnessAware(sgd, radius="0.05")
    with pytest.raises(ValueError, match="at least 0"):
        steppe.SAM(sgd, rho=-1.0)
    for make in (steppe.Adaptive, steppe.Fisher, steppe.DomainVariance):
        with pytest.raises(ValueError, match="must be at least 0 and finite, got inf"):
            make(float("inf"))
    with pytest.raises(ValueError, match=r"every must be a whole number of at least 1, got 2\.5"):
        steppe.LookSAM(sgd, every=2.5)
    with pytest.raises(ValueError, match="needs parameter names"):
        steppe.ASAM(sgd, weights_only=True)
    sgd.param_groups[0]["rho"] = -1.0
    with pytest.raises(ValueError, match="at least 0"):
        sam.step(closure_for(sam, model, problem))


def test_names_may_come_from_the_base_optimizer() -> None:
    model = network()
    optimizer = steppe.ASAM(torch.optim.SGD(model.named_parameters(), lr=0.1), weights_only=True)
    other = network()
    reference = steppe.ASAM(torch.optim.SGD(other.parameters(), lr=0.1), weights_only=True, model=other)
    problem = batches(1)[0]
    optimizer.step(closure_for(optimizer, model, problem))
    reference.step(closure_for(reference, other, problem))
    assert torch.equal(weights(model), weights(other))


def test_sparse_gradients_are_refused_and_leave_w() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = steppe.SAM(torch.optim.SGD(embedding.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step(lambda: embedding(torch.tensor([1, 2])).sum().backward())
    assert torch.equal(embedding.weight.detach(), before)


def test_a_part_of_ones_own() -> None:
    """A method from next year's literature: one class in the user's code, the engine untouched."""

    class Sign:
        needs_names = False

        def direction(self, leaves):
            """The maximiser of ⟨g, ε⟩ on ‖ε‖_∞ ≤ ρ, as a 'direction' of norm 1."""
            torch._foreach_sign_(leaves.gradients)
            return [torch.ones((), dtype=leaves.weights[0].dtype)]

    model, problem = network(), batches(1)[0]
    optimizer = steppe.DISAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.01, geometry=Sign())
    before, seen = weights(model), []
    optimizer.step(closure_for(optimizer, model, problem, lambda _: seen.append(weights(model))))
    moved = (seen[-1] - before).abs()
    torch.testing.assert_close(moved[moved > 0], torch.full_like(moved[moved > 0], 0.01))
