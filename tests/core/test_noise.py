"""The noise on a model's inputs, z ~ N(0, σ²): new in every call, and nothing else is shifted by it."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import Noise, Problem, batches, closure_for, losses_of, network, train, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe

NOISED = {
    "tram-noise": lambda base, model, sigma=0.1, **parts: steppe.TRAM(base, model, "noise", sigma=sigma, **parts),
    "tram-fisher": lambda base, model, sigma=0.1, **parts: steppe.TRAMFisher(base, model, sigma, **parts),
    "tram-fisher-shared": lambda base, model, sigma=0.1, **parts: steppe.TRAMFisher(
        base, model, sigma, shared_pass=True, **parts
    ),
}
noised = pytest.mark.parametrize("name", NOISED)


def made(name: str, model: nn.Module, **options) -> steppe.SharpnessAware:
    return NOISED[name](torch.optim.SGD(model.parameters(), lr=0.1), model, **options)


# --- what is drawn ---


@noised
def test_every_step_every_part_and_every_micro_batch_has_its_own(name: str) -> None:
    """Also where nothing else draws from the global generators, so that their state is the same in every step."""
    model, problem = network(), batches(1, samples=12)[0]
    noise, state = Noise(model), torch.get_rng_state()
    optimizer = made(name, model, m=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        for half in (problem.of(slice(0, 6)), problem.of(slice(6, 12))):
            x, y = optimizer.ascent_batch(half.x, half.y)
            loss = losses_of(model, Problem(x, y, y)).mean() / 2
            loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(noise.drawn) == 3 * 2 * 2
    flattened = torch.stack([z.flatten() for z in noise.drawn])
    apart = torch.cdist(flattened, flattened) + torch.eye(len(flattened))
    assert apart.min() > 0.1  # two draws of 18 numbers with σ = 0.1 are some 0.6 apart


@noised
def test_it_is_normal_with_the_given_deviation(name: str) -> None:
    drawn = []
    for sigma in (0.1, 0.7):
        model, problem = network(), batches(1, samples=4000)[0]
        noise = Noise(model)
        torch.manual_seed(0)
        train(made(name, model, sigma=sigma), model, [problem])
        drawn.append(torch.cat([z.flatten() for z in noise.drawn]) / sigma)
    torch.testing.assert_close(*drawn, atol=1e-13, rtol=0)
    z = drawn[0].sort()[0]
    normal = torch.distributions.Normal(0.0, 1.0).cdf(z)
    uniform = (torch.arange(len(z)) + 0.5) / len(z)
    assert (normal - uniform).abs().max() < 1.95 / len(z) ** 0.5  # Kolmogorov and Smirnov, at 0.1 %


@noised
def test_it_follows_the_global_seed_and_a_copy_draws_the_same(name: str) -> None:
    def drawn(seed: int, resume: bool = False) -> Tensor:
        model, problems = network(), batches(4)
        torch.manual_seed(seed)
        optimizer = made(name, model)
        train(optimizer, model, problems[:2])
        if resume:
            model, saved = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
            optimizer = made(name, model)
            optimizer.load_state_dict(saved)
        noise = Noise(model)
        train(optimizer, model, problems[2:])
        return torch.stack(noise.drawn)

    assert torch.equal(drawn(1), drawn(1, resume=True))
    assert not torch.allclose(drawn(1), drawn(2))


# --- what is not shifted ---


@noised
def test_dropout_is_as_it_would_be_without(name: str) -> None:
    masks: dict[str, list[Tensor]] = {}
    for method in (name, "fisher"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double()
        masks[method] = []
        model[1].register_forward_hook(lambda layer, args, out, m=method: masks[m].append((out == 0).clone()))
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = steppe.FisherSAM(base) if method == "fisher" else NOISED[method](base, model)
        torch.manual_seed(1)
        train(optimizer, model, batches(1))
    if name == "tram-noise":  # the reference has the model's
        assert torch.equal(masks[name][0], masks[name].pop(1))
    assert all(torch.equal(a, b) for a, b in zip(masks[name], masks["fisher"], strict=False))


@noised
def test_the_same_dropout_in_every_pass(name: str) -> None:
    model, masks = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double(), []
    model[1].register_forward_hook(lambda layer, args, out: masks.append((out == 0).clone()))
    optimizer = made(
        name,
        model,
        same_dropout=True,
        objective=steppe.DomainVariance(),
        descent=steppe.SurrogateGap(),
        accumulate="exact",
    )
    for problem in batches(2):
        masks.clear()
        train(optimizer, model, [problem])
        assert len(masks) >= 4
        assert all(torch.equal(mask, masks[0]) for mask in masks)


# --- which pass ---


def test_only_the_measuring_pass_is_noised_or_with_one_pass_the_climb() -> None:
    for name, expected in {
        "tram-fisher": {"measure": True, "climb": False, "descent": False},
        "tram-fisher-shared": {"climb": True, "descent": False},
    }.items():
        model, problem = network(), batches(1)[0]
        optimizer, seen = made(name, model), {}

        def look(layer, args, optimizer=optimizer, seen=seen, x=problem.x) -> None:
            seen[optimizer._stage.phase] = not torch.equal(args[0], x)

        model[0].register_forward_pre_hook(look)
        train(optimizer, model, [problem])
        assert seen == expected
        model(problem.x)
        assert seen[None] is False  # and nothing outside a step


def test_a_trust_region_compares_on_the_same_noised_inputs() -> None:
    """The climb's pass of a shared Fisher is noised: the reference is asked about those inputs."""
    model, problems = network(), batches(3)
    optimizer = steppe.TRAMFisher(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        sigma=5.0,
        shared_pass=True,
        radius=steppe.TrustRegion(model, "initial"),
    )
    inputs = []
    model[0].register_forward_pre_hook(lambda layer, args: inputs.append(args[0].clone()))
    radii = []
    for problem in problems:
        train(optimizer, model, [problem])
        radii.append(optimizer.diagnostics["radius"].item())
    for reference, own, descent, problem in zip(inputs[::3], inputs[1::3], inputs[2::3], problems, strict=True):
        assert torch.equal(reference, own)
        assert torch.equal(descent, problem.x)
        assert not torch.equal(own, problem.x)
    assert radii[0] == 0 < radii[1]


# --- which inputs ---


class Language(nn.Module):
    """Token ids or embeddings → logits ``[B, T, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.words = nn.Embedding(4, 5), nn.Embedding(11, 5)
        self.head = nn.Linear(5, 3)
        self.seen: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.double()

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        places, words = self.positions(torch.arange(ids.shape[1])), self.words(ids)
        self.seen += [
            places.detach() - self.positions.weight.detach(),
            words.detach() - self.words.weight.detach()[ids],
        ]
        self.masks.append(attention_mask)
        return self.head(places + words)


def noised_tables(model: Language, **options) -> list[bool]:
    """Whether the first call of a step has noise on positions and on words."""
    ids, mask = torch.randint(0, 11, (2, 4)), torch.ones(2, 4, dtype=torch.float64)
    optimizer = NOISED["tram-fisher-shared"](torch.optim.SGD(model.parameters(), lr=0.1), model, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(ids, attention_mask=mask).flatten(0, 1), torch.zeros(8, dtype=torch.long))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert all(torch.equal(given, mask) for given in model.masks)  # a mask is no input
    assert not model.words._forward_hooks
    assert not model.positions._forward_hooks
    return [bool(z.any()) for z in model.seen[:2]]


def test_token_ids_have_it_on_their_embeddings() -> None:
    assert noised_tables(Language()) == [True, False]  # the first embedding of the model
    model = Language()
    assert noised_tables(model, embedding=model.words) == [False, True]
    model = Language()
    model.get_input_embeddings = lambda: model.words
    assert noised_tables(model) == [False, True]


def test_the_first_floating_point_input_has_it() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.seen = network(), []

        def forward(self, ids: Tensor, x: Tensor, other: Tensor) -> Tensor:
            self.seen.append((ids, x, other))
            return self.inner(x + other)

    problem, ids = batches(1)[0], torch.zeros(15, dtype=torch.long)
    for by_keyword in (False, True):
        model = Two()
        optimizer = NOISED["tram-noise"](torch.optim.SGD(model.parameters(), lr=0.1), model)

        def closure(model=model, optimizer=optimizer, by_keyword=by_keyword) -> Tensor:
            optimizer.zero_grad()
            given = {"x": problem.x, "other": problem.x}
            logits = model(ids, **given) if by_keyword else model(ids, *given.values())
            loss = cross_entropy(logits, problem.y)
            loss.backward()
            return loss

        optimizer.step(closure)
        reference, own, _ = model.seen
        assert [torch.equal(a, b) for a, b in zip(reference, own, strict=True)] == [True, False, True]


@noised
def test_a_model_without_anything_to_noise_is_an_error(name: str) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(11, 3))

        def forward(self, ids: Tensor) -> Tensor:
            return self.table[ids]

    model, ids = Lookup(), torch.arange(11)
    optimizer = made(name, model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(ids), ids % 3)
        loss.backward()
        return loss

    with pytest.raises(TypeError, match="not floating point and it has no embedding: pass embedding="):
        optimizer.step(closure)
    assert not weights(model).any()
    assert not model._forward_pre_hooks


def test_a_deviation_that_is_none_is_refused() -> None:
    model = network()
    for sigma in (-0.1, float("nan"), float("inf")):
        for name in NOISED:
            with pytest.raises(ValueError, match="sigma must be at least 0 and finite"):
                made(name, model, sigma=sigma)
    optimizer = made("tram-noise", model, sigma=0.0)
    optimizer.step(closure_for(optimizer, model, batches(1)[0]))
    assert optimizer.diagnostics["radius"] == 0


@noised
def test_a_model_that_has_no_answer_to_what_its_embedding_is(name: str) -> None:
    """As transformers' models for pictures have none; their inputs are floating point."""

    class Pictures(nn.Sequential):
        def get_input_embeddings(self) -> nn.Module:
            raise NotImplementedError

    weights_after = []
    for kind in (nn.Sequential, Pictures):
        model = kind(*network())
        optimizer = made(name, model)
        torch.manual_seed(0)
        train(optimizer, model, batches(2))
        weights_after.append(weights(model))
    assert torch.equal(*weights_after)


def test_an_embedding_that_the_model_does_not_call_is_named() -> None:
    class Ids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.tokens, self.head = nn.Embedding(3, 4), nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.tokens(ids).mean(1))

    model, ids, y = Ids(), torch.arange(6).view(2, 3), torch.tensor([0, 2])
    for embedding, fault in ((None, "pass embedding="), (model.tokens, None)):
        optimizer = steppe.TRAM(torch.optim.SGD(model.parameters(), lr=0.1), model, "noise", embedding=embedding)

        def closure(optimizer: steppe.SharpnessAware = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(ids), y)
            loss.backward()
            return loss

        if fault is None:
            optimizer.step(closure)
            assert optimizer.diagnostics["radius"] > 0
        else:
            with pytest.raises(RuntimeError, match=fault):
                optimizer.step(closure)
