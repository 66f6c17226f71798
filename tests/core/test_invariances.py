"""What must change nothing, and which methods are others in disguise."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import EVERY, Problem, batches, network, train, weights
from torch import nn

import steppe

every = pytest.mark.parametrize("name", EVERY)
NOISED = {"tram-noise", "tram-fisher", "tram-fisher-shared", "everything"}
ORDERED = {"half of the batch", "m-sharpness"}  # which samples are in a part is a matter of their order


def trained(make, problems, normalise=False, base=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)):
    """The weights after a step a problem."""
    model = network(normalise=normalise)
    optimizer = make(base(model.parameters()), model)
    torch.manual_seed(3)
    train(optimizer, model, problems)
    return weights(model)


# --- the batch ---


@pytest.mark.parametrize("name", sorted(EVERY.keys() - NOISED - ORDERED))
def test_permuting_the_batch_changes_nothing(name: str) -> None:
    problems = batches(5)
    permuted = [problem.of(torch.randperm(len(problem))) for problem in problems]
    torch.testing.assert_close(trained(EVERY[name], permuted), trained(EVERY[name], problems), atol=1e-12, rtol=0)


@every
def test_relabelling_the_domains_changes_nothing(name: str) -> None:
    problems = batches(5)
    renamed = [Problem(p.x, p.y, 1000 - 17 * p.domain) for p in problems]
    assert torch.equal(trained(EVERY[name], renamed), trained(EVERY[name], problems))


@pytest.mark.parametrize("options", [{"ascent_fraction": 0.4}, {"m": 3}], ids=str)
def test_relabelling_the_domains_changes_no_part_of_the_batch(options) -> None:
    problems = batches(5)
    renamed = [Problem(p.x, p.y, 1000 - 17 * p.domain) for p in problems]

    def make(base, model):
        return steppe.DISAM(base, **options)

    assert torch.equal(trained(make, renamed), trained(make, problems))


@pytest.mark.parametrize("name", ["disam", "disam+sagm", "disam+tram+sagm", "sam"])
def test_domains_split_in_halves_with_the_same_losses_change_nothing(name: str) -> None:
    """Var{L_i} is a mean over the domains: twice as many with the same losses have the same variance."""
    problems = batches(5)
    twice = [Problem(*(torch.cat([t, t]) for t in (p.x, p.y, p.domain))) for p in problems]
    halves = [Problem(t.x, t.y, torch.cat([p.domain, p.domain + 10])) for t, p in zip(twice, problems, strict=True)]
    expected = trained(EVERY[name], problems)
    torch.testing.assert_close(trained(EVERY[name], twice), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(trained(EVERY[name], halves), expected, atol=1e-12, rtol=0)


@settings(max_examples=20, deadline=None)
@given(lam=st.floats(0.1, 3.0), shift=st.floats(-5.0, 5.0))
def test_a_constant_added_to_the_losses_changes_nothing(lam: float, shift: float) -> None:
    model, problem = network(), batches(1)[0]
    gradients = []
    for constant in (0.0, shift):
        optimizer = steppe.DISAM(torch.optim.SGD(model.parameters(), lr=0.1), lam=lam)
        with optimizer.climbing():
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(problem.x), problem.y, reduction="none") + constant
            optimizer.objective(losses, problem.domain).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


# --- methods that are others in disguise ---

SAME = {
    "λ = 0": (lambda b, m: steppe.DISAM(b, lam=0.0), lambda b, m: steppe.SAM(b)),
    "λ = 0, three parts more": (
        lambda b, m: steppe.DISAM(b, lam=0.0, geometry=steppe.Adaptive(), descent=steppe.GradientMatching(0.1)),
        lambda b, m: steppe.SAGM(b, alpha=0.1, geometry=steppe.Adaptive()),
    ),
    "Fisher's η = 0": (lambda b, m: steppe.FisherSAM(b, eta=0.0), lambda b, m: steppe.SAM(b, rho=0.1)),
    "noise of σ = 0": (lambda b, m: steppe.TRAMFisher(b, m, sigma=0.0), lambda b, m: steppe.FisherSAM(b)),
    "noise of σ = 0, shared": (
        lambda b, m: steppe.TRAMFisher(b, m, sigma=0.0, shared_pass=True),
        lambda b, m: steppe.FisherSAM(b),
    ),
    "Smoothed(θ = 1)": (lambda b, m: steppe.VaSSO(b, theta=1.0), lambda b, m: steppe.SAM(b)),
    "Friendly(σ = 0)": (lambda b, m: steppe.FriendlySAM(b, sigma=0.0), lambda b, m: steppe.SAM(b)),
    "Reuse(k = 1)": (lambda b, m: steppe.LookSAM(b, every=1), lambda b, m: steppe.SAM(b)),
    "Reuse(k = 1) of SAGM": (
        lambda b, m: steppe.SAGM(b, descent=steppe.Reuse(1, descent=steppe.GradientMatching(0.1))),
        lambda b, m: steppe.SAGM(b, alpha=0.1),
    ),
    "m = 1, fraction = 1": (lambda b, m: steppe.SAM(b, m=1, ascent_fraction=1.0), lambda b, m: steppe.SAM(b)),
    "SurrogateGap(α = 0)": (lambda b, m: steppe.GSAM(b, alpha=0.0), lambda b, m: steppe.SAM(b)),
    "exact accumulation of one batch": (
        lambda b, m: steppe.DISAM(b, accumulate="exact"),
        lambda b, m: steppe.DISAM(b),
    ),
    "a flat schedule": (
        lambda b, m: steppe.SAM(b, rho=steppe.Proportional(0.05, 0.05, lr_max=1.0)),
        lambda b, m: steppe.SAM(b),
    ),
    "a mean that forgets all": (
        lambda b, m: steppe.TRAM(b, m, "ema", "l2", decay=0.0),
        lambda b, m: steppe.TRAM(b, m, "noise", "l2", sigma=0.0),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_method_bit_for_bit(name: str) -> None:
    special, plain = SAME[name]
    problems = batches(5)
    assert torch.equal(trained(special, problems), trained(plain, problems))


def test_one_domain_is_sam() -> None:
    problems = [Problem(p.x, p.y, torch.full_like(p.domain, 4)) for p in batches(5)]
    sam = trained(EVERY["sam"], problems)
    torch.testing.assert_close(trained(lambda b, m: steppe.DISAM(b, lam=2.0), problems), sam, atol=1e-12, rtol=0)


def test_a_trust_region_that_is_always_capped_is_asam() -> None:
    problems = batches(6)

    def tram(base, model):
        return steppe.TRAM(base, model, "noise", "l2", sigma=100.0, max_radius=0.2)

    asam = trained(lambda b, m: steppe.ASAM(b, rho=0.2, eta=0.0), problems)
    torch.testing.assert_close(trained(tram, problems), asam, atol=1e-12, rtol=0)


@every
def test_a_radius_of_zero_is_the_base_optimizer_in_one_pass(name: str) -> None:
    problems, plain = batches(5), network(normalise=True)
    model = network(normalise=True)
    groups = [{"params": list(model.parameters()), "rho": 0.0}]
    optimizer = EVERY[name](torch.optim.AdamW(groups, lr=0.05), model)
    reference = torch.optim.AdamW(plain.parameters(), lr=0.05)
    for problem in problems:
        train(optimizer, model, [problem])
        reference.zero_grad()
        nn.functional.cross_entropy(plain(problem.x), problem.y).backward()
        reference.step()
    assert not optimizer.climbs
    assert torch.equal(weights(model), weights(plain))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


@every
def test_a_radius_that_becomes_zero_leaves_the_base_optimizer(name: str) -> None:
    """From the next step on that would climb: nothing of the climbs before goes on."""
    model = network()
    optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model)
    train(optimizer, model, batches(5))
    (group,) = optimizer.param_groups
    group["rho"] = 0.0
    while not optimizer.parts.climbs_at(optimizer._steps):
        train(optimizer, model, batches(1))
    plain = copy.deepcopy(model)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    reference.load_state_dict(copy.deepcopy(optimizer.base.state_dict()))  # a mere load would share the momentum
    for problem in batches(5, seed=2):
        train(optimizer, model, [problem])
        reference.zero_grad()
        nn.functional.cross_entropy(plain(problem.x), problem.y).backward()
        reference.step()
    assert torch.equal(weights(model), weights(plain))


# --- re-scaling the weights ---

SCALED = {
    "asam": lambda b, m: steppe.ASAM(b, eta=0.0),
    "disam+asam+sagm": lambda b, m: steppe.DISAM(
        b, geometry=steppe.Adaptive(0.0), descent=steppe.GradientMatching(0.0)
    ),
    "tram-noise": lambda b, m: steppe.TRAM(b, m, "noise", sigma=0.5),
    "tram-initial": lambda b, m: steppe.TRAM(b, m, "initial", "l2"),
    "tram-previous": lambda b, m: steppe.TRAM(b, m, "previous", "mmd"),
    "friendly asam": lambda b, m: steppe.FriendlySAM(b, sigma=0.5, geometry=steppe.Adaptive(0.0)),
}


def rise(make, scale: float) -> float:
    """L(w + ε) − L(w) in the second step for a network with w₁·c and w₂/c, which is the same function for every c."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    first, second = batches(2)
    scales = torch.tensor([scale, 1 / scale], dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(scales[0])
        model[2].weight.mul_(scales[1])
    # A step of gradient descent that moves the function equally: lr c² for what is scaled by c.
    base = torch.optim.SGD(
        [{"params": [layer.weight], "lr": 0.1 * c**2} for layer, c in zip(model[::2], scales.tolist(), strict=True)]
    )
    optimizer = make(base, model)
    torch.manual_seed(4)
    train(optimizer, model, [first, second])
    return float(optimizer.diagnostics["loss_rise"])


@pytest.mark.parametrize("name", SCALED)
def test_an_adaptive_climb_is_invariant_to_rescaling_consecutive_layers(name: str) -> None:
    one, seven = rise(SCALED[name], 1.0), rise(SCALED[name], 7.0)
    assert abs(one) > 1e-6
    assert seven == pytest.approx(one, rel=1e-8)


@pytest.mark.parametrize(
    "make", [lambda b, m: steppe.SAM(b), lambda b, m: steppe.TRAM(b, m, "noise", geometry=steppe.Euclidean())]
)
def test_a_euclidean_climb_is_not(make) -> None:
    one, seven = rise(make, 1.0), rise(make, 7.0)
    assert abs(one - seven) > 1e-3 * abs(one)
