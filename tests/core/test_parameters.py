"""Parameters of any shape, dtype and group; tied, frozen and unused ones: in every method."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle, adaptive, fisher, friendly, half_sum, surrogate_gap, trust
from problems import EVERY, batches, losses_of, network, train, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe

every = pytest.mark.parametrize("name", EVERY)
NAMES = st.sampled_from(sorted(EVERY))


class Parts(nn.Module):
    """A classifier with parameters of any shapes: ``[N, 3]`` → logits ``[N, 3]`` that every number has a say in."""

    def __init__(self, shapes: list[list[int]], dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.pieces = nn.ParameterList(
            nn.Parameter((1 + torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype))
            for shape in shapes
        )

    def forward(self, x: Tensor) -> Tensor:
        total = sum((piece * torch.linspace(0.5, 1.5, piece.numel()).view_as(piece)).sum() for piece in self.pieces)
        return x.to(self.pieces[0].dtype) * (1 + torch.sin(0.1 * total))


def watched(optimizer, model: nn.Module, steps: int = 2) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Steps on a fixed batch: the weights before, and those seen in each step's last pass."""
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, domain = torch.arange(12) % 3, torch.arange(12) % 2
    before, seen = [p.detach().clone() for p in model.parameters()], []
    torch.manual_seed(0)
    for _ in range(steps):

        def closure() -> Tensor:
            optimizer.zero_grad()
            part, labels, domains = optimizer.ascent_batch(x, y, domain=domain)
            loss = optimizer.objective(cross_entropy(model(part), labels, reduction="none"), domains)
            loss.backward()
            seen.append([p.detach().clone() for p in model.parameters()])
            return loss

        optimizer.step(closure)
    return before, seen


SHAPES = st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=5).filter(
    lambda shapes: any(0 not in shape for shape in shapes)
)


@settings(max_examples=120, deadline=None)
@given(name=NAMES, shapes=SHAPES, dtype=st.sampled_from([torch.float32, torch.float64]), groups=st.booleans())
def test_shapes_and_dtypes(name: str, shapes: list[list[int]], dtype: torch.dtype, groups: bool) -> None:
    """Scalars, empty tensors, a group each: w comes back bit for bit, and in the second pass it is another."""
    model = Parts(shapes, dtype)
    given = [{"params": [p]} for p in model.parameters()] if groups else list(model.parameters())
    optimizer = EVERY[name](torch.optim.SGD(given, lr=0.0), model)
    before, seen = watched(optimizer, model)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.dtype == dtype == p.grad.dtype for p in model.parameters())
    assert all(p.grad.isfinite().all() and p.isfinite().all() for p in model.parameters())
    climbed = [any(not torch.equal(s, b) for s, b in zip(pass_, before, strict=True)) for pass_ in seen]
    d_is_zero = name in ("tram", "tram-initial", "tram-ema")  # with a learning rate of 0 the model is its reference
    assert any(climbed) is not d_is_zero


@settings(max_examples=60, deadline=None)
@given(
    name=NAMES,
    radii=st.lists(st.sampled_from([0.0, 0.02, 0.1, 0.7]), min_size=3, max_size=3).filter(any),
    as_tensor=st.booleans(),
)
def test_a_groups_own_radius(name: str, radii: list[float], as_tensor: bool) -> None:
    """ε of a group is in proportion to its ρ; a plain 0 leaves it out, of the common norm too."""
    model = Parts([[3], [2, 2], []], torch.float64)

    def perturbation(scale: float) -> list[Tensor]:
        rhos = [rho if rho == 0 else torch.tensor(scale * rho) if as_tensor else scale * rho for rho in radii]
        groups = [{"params": [p], "rho": rho} for p, rho in zip(model.parameters(), rhos, strict=True)]
        before, seen = watched(EVERY[name](torch.optim.SGD(groups, lr=0.0), model), model, steps=1)
        return [s - b for s, b in zip(seen[-1], before, strict=True)]

    one, two, three = (perturbation(scale) for scale in (1.0, 2.0, 3.0))
    for rho, a, b, c in zip(radii, one, two, three, strict=True):
        if rho == 0:
            assert not a.any()  # and no retreat either
        else:
            assert a.any()
            torch.testing.assert_close(c - b, b - a, atol=1e-7, rtol=1e-6)  # the retreat of SAGM does not scale


@settings(max_examples=20, deadline=None)
@given(radii=st.lists(st.sampled_from([None, 0.0, 0.02, 0.7]), min_size=3, max_size=3))
def test_groups_without_a_radius_of_their_own_have_the_measured_one(radii: list[float | None]) -> None:
    model = Parts([[3], [2, 2], []], torch.float64)
    groups = [
        {"params": [p], **({} if rho is None else {"rho": rho})}
        for p, rho in zip(model.parameters(), radii, strict=True)
    ]
    optimizer = steppe.TRAM(torch.optim.SGD(groups, lr=0.0), model, "noise", sigma=2.0, geometry=steppe.Euclidean())
    before, seen = watched(optimizer, model, steps=1)
    if not any(rho is None or rho > 0 for rho in radii):
        assert len(seen) == 1  # nothing climbs
        return
    d = optimizer.parts.radius.length({}).item()
    used = [d if rho is None else rho for rho in radii]
    assert optimizer.diagnostics["radius"].item() == pytest.approx(max(used))
    lengths = [(s - b).norm().item() for s, b in zip(seen[-1], before, strict=True)]
    share = sum((length / rho) ** 2 for length, rho in zip(lengths, used, strict=True) if rho)
    assert share == pytest.approx(1.0)  # ε / ρ is a unit vector over all that climb


@pytest.mark.filterwarnings("ignore:rounding to torch.bfloat16")
@every
def test_bfloat16_weights(name: str) -> None:
    model, problems = network().bfloat16(), batches(3)
    for problem in problems:
        problem.x = problem.x.bfloat16()
    optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.0), model)
    before = weights(model)
    train(optimizer, model, problems)
    assert torch.equal(weights(model), before)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    train(optimizer, model, problems)
    assert not torch.equal(weights(model), before)
    assert weights(model).isfinite().all()
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}


# --- tied, frozen, unused ---


class Tied(nn.Module):
    """The output layer is the input layer, transposed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode = nn.Linear(6, 3), nn.Linear(6, 3)
        self.decode.weight = self.encode.weight
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x) @ self.encode.weight))


TIED = {
    "sam": {},
    "asam": {"rho": 0.5, "direction": adaptive(0.01)},
    "gsam": {"descent": surrogate_gap(0.4)},
    "disam": {"lam": 0.1},
    "fisher": {"rho": 0.1, "direction": fisher(0.1)},
    "friendly": {"climbed": friendly(1.0, 0.9)},
    "looksam": {"every": 2},
    "tram": {"rho": trust("previous", "kl"), "direction": adaptive(0.0)},
    "tram-initial": {"rho": trust("initial", "l2"), "direction": adaptive(0.0)},
    "tram-ema": {"rho": trust("ema", "mmd", 0.9), "direction": adaptive(0.0)},
    "disam+tram+sagm": {
        "lam": 0.1,
        "rho": trust("previous", "kl"),
        "direction": adaptive(0.0),
        "retreat": 0.01,
        "descent": half_sum,
    },
}


@pytest.mark.parametrize("name", TIED)
def test_tied_weights_are_one_parameter(name: str) -> None:
    model, problems = Tied(), batches(6)
    optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1), model)
    w = Oracle(Tied(), 0.1, **TIED[name]).run(weights(model), problems)
    train(optimizer, model, problems)
    torch.testing.assert_close(weights(model), w, atol=1e-10, rtol=0)
    assert model.encode.weight is model.decode.weight


@every
def test_frozen_and_unused_parameters_change_nothing(name: str) -> None:
    problems, results = batches(5), []
    for extra in (False, True):
        model = network(normalise=True)
        model[0].bias.requires_grad_(False)
        if extra:
            model.register_parameter("unused", nn.Parameter(torch.ones(3, 3, dtype=torch.float64)))
        trained = [p for p in model.parameters() if extra or p.requires_grad]
        optimizer = EVERY[name](torch.optim.SGD(trained, lr=0.1, momentum=0.9), model)
        torch.manual_seed(0)
        train(optimizer, model, problems)
        results.append(model)
    plain, full = (dict(model.named_parameters()) for model in results)
    assert all(torch.equal(p, full[key]) for key, p in plain.items())
    assert torch.equal(full["unused"], torch.ones(3, 3, dtype=torch.float64))
    assert torch.equal(full["0.bias"], network(normalise=True)[0].bias)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.both = nn.Linear(6, 3), nn.Linear(6, 3), True
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.always(x) + self.sometimes(x) if self.both else self.always(x)


@every
def test_a_layer_that_only_some_steps_reach(name: str) -> None:
    """It rests in the steps that do not reach it, and what is remembered of it waits."""
    model = Branching()
    optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1), model)
    for step, problem in enumerate(batches(6)):
        model.both = step % 2 == 0
        before = weights(model.sometimes)
        train(optimizer, model, [problem])
        assert torch.equal(weights(model.sometimes), before) is not model.both
        assert weights(model).isfinite().all()


def test_the_mean_of_a_layer_that_rested_is_that_of_the_steps_that_reached_it() -> None:
    model = Branching()
    optimizer = steppe.VaSSO(torch.optim.SGD(model.parameters(), lr=0.1), theta=0.25)
    gradients = []
    for step, problem in enumerate(batches(5)):
        model.both = step % 2 == 0
        if model.both:
            (g,) = torch.autograd.grad(losses_of(model, problem).mean(), model.sometimes.bias)
            gradients.append(g)
        train(optimizer, model, [problem])
    expected = sum(0.25 * 0.75**age * g for age, g in enumerate(reversed(gradients)))
    saved = optimizer.extra_state()["memory"]["geometry"]["gradient"]
    torch.testing.assert_close(saved["3"], expected, atol=1e-14, rtol=0)
