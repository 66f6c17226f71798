"""The grammar: which sums there are, what each builds, and what is said of those that there are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sums import DOMAINS, Network, a_model, built, closure_for, problems, same, train
from torch import Tensor

import steppe
from steppe.errors import SteppeError
from steppe.training.hyper import WORDS
from steppe.training.recipes import build, parse
from steppe.training.words import SLOTS, WRAPPED

Make = Callable[[torch.optim.Optimizer, Network], steppe.SharpnessAware]

# What each sum stands for, written with the library's parts.
METHODS: dict[str, Make] = {
    "sam": lambda base, model: steppe.SAM(base, rho=0.05, model=model),
    "asam": lambda base, model: steppe.ASAM(base, rho=0.5, eta=0.01, model=model),
    "fsam": lambda base, model: steppe.FisherSAM(base, gamma=0.1, eta=0.1, model=model),
    "gsam": lambda base, model: steppe.GSAM(base, rho=0.05, alpha=0.4, model=model),
    "sagm": lambda base, model: steppe.SAGM(base, rho=0.05, alpha=0.001, model=model),
    "disam": lambda base, model: steppe.DISAM(base, rho=0.05, lam=0.1, model=model),
    "tram": lambda base, model: steppe.TRAM(base, model),
    "tram-initial": lambda base, model: steppe.TRAM(base, model, "initial"),
    "tram-ema": lambda base, model: steppe.TRAM(base, model, "ema"),
    "tram-x": lambda base, model: steppe.TRAM(base, model, "noise"),
    "tram-fisher": lambda base, model: steppe.TRAMFisher(base, model),
    "tram-fisher-shared": lambda base, model: steppe.TRAMFisher(base, model, shared_pass=True),
    "friendly": lambda base, model: steppe.FriendlySAM(base, model=model),
    "vasso": lambda base, model: steppe.VaSSO(base, model=model),
    "looksam": lambda base, model: steppe.LookSAM(base, model=model),
    "disam+sagm": lambda base, model: steppe.DISAM(base, descent=steppe.GradientMatching(0.001), model=model),
    "disam+asam+gsam": lambda base, model: steppe.DISAM(
        base, rho=0.5, model=model, geometry=steppe.Adaptive(0.01), descent=steppe.SurrogateGap(0.4)
    ),
    "disam+tram": lambda base, model: steppe.TRAM(base, model, objective=steppe.DomainVariance(0.1)),
    "asam+tram": lambda base, model: steppe.TRAM(base, model, geometry=steppe.Adaptive(0.01)),
    "disam+tram-fisher": lambda base, model: steppe.TRAMFisher(base, model, objective=steppe.DomainVariance(0.1)),
    "friendly+asam": lambda base, model: steppe.ASAM(
        base, geometry=steppe.Friendly(steppe.Adaptive(0.01)), model=model
    ),
    "sagm+looksam": lambda base, model: steppe.SAM(
        base, descent=steppe.Reuse(descent=steppe.GradientMatching(0.001)), model=model
    ),
}


def by_hand(make: Make, steps: int) -> list[Tensor]:
    model = a_model()
    optimizer = make(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model)
    for problem in problems(steps):

        def closure() -> Tensor:
            optimizer.zero_grad()
            x, y, domain = problem  # noqa: B023 - called in this turn
            losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
            loss = optimizer.objective(losses, domain)
            loss.backward()
            return loss

        optimizer.step(closure)
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", METHODS)
def test_a_sum_steps_as_its_parts_with_their_published_defaults(name: str) -> None:
    torch.manual_seed(3)
    expected = by_hand(METHODS[name], 3)
    torch.manual_seed(3)
    model = a_model()
    assert same(train(built(name, model), model, 3), expected)


def test_erm_is_the_base_optimizer_to_the_bit() -> None:
    model, plain = a_model(), a_model()
    base = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for x, y, _ in problems(3):
        base.zero_grad()
        torch.nn.functional.cross_entropy(plain(x), y, reduction="none").mean().backward()
        base.step()
    method = built("erm", model)
    assert same(train(method, model, 3), [parameter.detach() for parameter in plain.parameters()])
    assert not method.optimizer.climbs
    assert len(list(method.optimizer.passes())) == 1


# Short runs: what only a later step shows must show in them.
SOON = {
    "fishr": {"anneal_steps": 0},
    "trpo": {"weight": 10.0},
    "mesa": {"weight": 100.0, "decay": 0.5},
    "lookahead": {"k": 2},
    "lookahead-mean": {"k": 2},
    "lookahead-anchor": {"k": 3, "anchor": 1.0, "anchor_reduction": "sum"},
    "ema": {"decay": 0.5},
}


def test_every_word_builds_trains_and_differs_from_every_other() -> None:
    found = {}
    for name in WORDS:
        model = a_model()
        torch.manual_seed(4)
        method = built(name, model, SOON.get(name))
        train(method, model, 1)
        method.evaluated(2.0)
        found[name] = train(method, model, 2, first=1)
        method.evaluated(1.0)
        averaged = method.averaged()
        if averaged is not None:
            found[name] = [averaged[key] for key, _ in model.named_parameters()]
        assert all(bool(weights.isfinite().all()) for weights in found[name]), name
    for one, other in itertools.combinations(found, 2):
        assert not same(found[one], found[other]), (one, other)


def fault_of(name: str) -> str | None:
    try:
        parse(name)
    except SteppeError as error:
        return str(error)
    return None


def test_every_pair_of_words_builds_and_trains_or_names_both_words_and_the_slot() -> None:
    refused = set()
    for pair in itertools.combinations_with_replacement(WORDS, 2):
        name = "+".join(pair)
        fault = fault_of(name)
        if fault is None:
            model = a_model()
            assert all(bool(weights.isfinite().all()) for weights in train(built(name, model), model)), name
        else:
            refused.add(pair)
            assert all(repr(word) in fault for word in pair), fault
            assert any(repr(slot) in fault for slot in SLOTS), fault
    # Words of one slot, but for penalties; erm and what climbs; two labels where one is needed.
    alike = {
        pair
        for pair in itertools.combinations_with_replacement(WORDS, 2)
        if any(slot in WORDS[pair[0]].fills and slot in WORDS[pair[1]].fills for slot in SLOTS if slot != "penalty")
        or (pair[0] == pair[1] and "penalty" in WORDS[pair[0]].fills)
        or (pair[0] == "erm" and WORDS[pair[1]].climbs)
        or pair in {("irm", "mixup"), ("fishr", "mixup")}
    }
    assert refused == alike


@given(st.permutations(["coral", "mixup", "disam", "friendly", "asam", "tram-x", "sagm", "looksam"]))
@settings(max_examples=30)
def test_the_order_of_words_does_not_matter(words: list[str]) -> None:
    assert parse("+".join(words)).name == "coral+mixup+disam+friendly+asam+tram-x+sagm+looksam"


@given(st.sets(st.sampled_from(sorted(WORDS)), min_size=1, max_size=5), st.randoms())
@settings(max_examples=100)
def test_a_sum_is_refused_or_accepted_in_every_order(words: set[str], random) -> None:
    found = set()
    for _ in range(3):
        order = list(words)
        random.shuffle(order)
        try:
            recipe = parse("+".join(order))
        except SteppeError:
            found.add(None)
        else:
            assert parse(recipe.name) == recipe
            found.add((recipe.name, tuple(recipe.hyper().items())))
    assert len(found) == 1


def test_spelling_is_forgiven_and_words_that_say_nothing_new_are_dropped() -> None:
    assert parse(" DISAM + sagm ").name == "disam+sagm"
    assert parse("tram_x").name == "tram-x"
    assert parse("sam+disam").name == "disam"
    assert parse("sam+sam").name == "sam"
    assert parse("erm+erm").name == "erm"
    assert parse("erm+coral").name == "coral"
    assert parse("sam+coral").name == "coral+sam"
    assert parse("vrex+coral").name == "coral+vrex"
    assert not parse("coral+mixup").climbs
    assert parse("coral+sam").climbs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsam+sagm", "'gsam' and 'sagm' both fill the slot 'descent'"),
        ("disam+disam", "'disam' and 'disam' both fill the slot 'objective'"),
        ("asam+disam+fsam", "'asam' and 'fsam' both fill the slot 'geometry'"),
        ("tram+fsam", "'tram' and 'fsam' both fill the slot 'radius'"),
        ("friendly+vasso", "'friendly' and 'vasso' both fill the slot 'estimate'"),
        ("coral+coral", "'coral' fills the slot 'penalty' twice"),
        ("erm+sam", r"'erm' does not climb \(its 'radius' is 0\) and 'sam' does"),
        ("mixup+irm", "'mixup' fills the slot 'batch', but 'irm' takes one label a sample"),
        ("dism", "unknown algorithm 'dism'; did you mean 'disam'"),
        ("disam+sgam", "unknown algorithm 'sgam'; did you mean"),
        ("tram-previous", "unknown algorithm 'tram-previous'; did you mean"),
        ("disam+", "unknown algorithm"),
        ("coral, disam", r"words are joined by '\+', as in coral\+disam"),
        ("coral,dism", "unknown algorithm 'coral,dism'"),
    ],
)
def test_what_is_no_sum_is_named(name: str, message: str) -> None:
    with pytest.raises(SteppeError, match=message):
        parse(name)


@pytest.mark.parametrize(
    ("name", "missing"), [("fishr", "head="), ("groupdro", "domains="), ("tram", "model="), ("disam+trpo", "model=")]
)
def test_what_a_word_cannot_do_without_is_named(name: str, missing: str) -> None:
    model = a_model()
    given = {"model=": {"model": model}, "head=": {"head": model.head}, "domains=": {"domains": DOMAINS}}
    rest = {key: value for argument, pair in given.items() if argument != missing for key, value in pair.items()}
    with pytest.raises(SteppeError, match=f"needs {missing}"):
        build(name, torch.optim.SGD(model.parameters(), lr=0.1), **rest)


def test_gsam_with_a_smallest_radius_lets_it_fall_with_the_learning_rate() -> None:
    model = a_model()
    method = built("gsam", model, {"rho": 0.1, "rho_min": 0.02}, lr=0.2)
    for lr, rho in ((0.2, 0.1), (0.1, 0.06), (0.0, 0.02)):
        method.base.param_groups[0]["lr"] = lr
        train(method, model, 1)
        assert float(method.optimizer.diagnostics["radius"]) == pytest.approx(rho)
    with pytest.raises(SteppeError, match="'tram' and 'gsam' both fill the slot 'radius'"):
        parse("gsam+tram").hyper({"rho_min": 0.02})


def test_options_of_the_engine_and_hyper_parameters_arrive() -> None:
    model = a_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    method = build("asam+friendly", base, model, {"eta": 0.2, "friendly.sigma": 0.5, "rho": 2}, same_dropout=True)
    assert repr(method.optimizer.parts.geometry) == (
        "Friendly(Adaptive(eta=0.2, weights_only=False), sigma=0.5, decay=0.9)"
    )
    assert repr(method.optimizer.parts.radius) == "Constant(2.0)"
    assert method.optimizer.same_dropout


@pytest.mark.parametrize(("hyper", "samples"), [({"ascent_fraction": 0.25}, [3, 12]), ({"m": 3}, [4, 4] * 3)])
def test_the_climb_sees_a_part_of_the_batch(hyper: dict[str, float], samples: list[int]) -> None:
    model = a_model()
    method = built("disam", model, hyper)
    (problem,) = problems(1)
    seen = []

    def closure() -> Tensor:
        method.zero_grad()
        x, y, domain = method.optimizer.ascent_batch(problem.x, problem.y, domain=problem.domain)
        seen.append(len(x))
        loss = method.loss(torch.nn.functional.cross_entropy(model(x), y, reduction="none"), domain)
        loss.backward()
        return loss

    method.step(closure)
    assert seen == samples


def test_every_word_says_what_it_does_and_fills_known_slots() -> None:
    for word in WORDS.values():
        assert word.summary
        assert word.source
        assert {*word.fills, *word.offers, *(slot for slot, _ in word.switched.values())} <= set(SLOTS)
    assert set(WRAPPED) | set(WRAPPED.values()) <= set(SLOTS)


def test_a_closure_of_the_readme_s_kind_needs_no_more_than_the_penalty_does() -> None:
    model = a_model()
    method = built("coral+disam", model)
    assert method.needs == {"features"}
    (problem,) = problems(1)

    def closure() -> Tensor:
        method.zero_grad()
        features = model.body(problem.x)
        losses = torch.nn.functional.cross_entropy(model.head(features), problem.y, reduction="none")
        loss = method.loss(losses, problem.domain, features=features)
        loss.backward()
        return loss

    other = a_model()
    another = built("coral+disam", other)
    assert method.step(closure) == another.step(closure_for(another, other, problem))
    assert same([*model.parameters()], [*other.parameters()])


def test_a_hyper_parameter_is_not_given_as_an_option() -> None:
    model = a_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for option in ({"ascent_fraction": 0.5}, {"m": 2}, {"radius": 0.1}):
        with pytest.raises(SteppeError, match=f"{next(iter(option))} of 'sam' .*: give it in hyper"):
            parse("sam").build(base, model, **option)
