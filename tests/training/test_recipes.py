from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import steppe
from steppe.errors import SteppeError
from steppe.training.recipes import SLOTS, WORDS, parse


def a_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def steps_of(optimizer: torch.optim.Optimizer, model: nn.Module, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        x = torch.randn(12, 5, generator=generator)
        y = torch.randint(3, (12,), generator=generator)
        domain = torch.arange(3).repeat_interleave(4)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(x), y, reduction="none")  # noqa: B023 - called in this turn
            sharp = isinstance(optimizer, steppe.SharpnessAware)
            loss = optimizer.objective(losses, domain) if sharp else losses.mean()  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)
    return [parameter.detach().clone() for parameter in model.parameters()]


METHODS = {
    "erm": lambda base, model: base,
    "sam": lambda base, model: steppe.SAM(base, rho=0.05, model=model),
    "asam": lambda base, model: steppe.ASAM(base, rho=0.5, eta=0.01, model=model),
    "gsam": lambda base, model: steppe.GSAM(base, rho=0.05, alpha=0.4, model=model),
    "sagm": lambda base, model: steppe.SAGM(base, rho=0.05, alpha=0.001, model=model),
    "disam": lambda base, model: steppe.DISAM(base, rho=0.05, lam=0.1, model=model),
    "disam+sagm": lambda base, model: steppe.DISAM(
        base, rho=0.05, lam=0.1, model=model, descent=steppe.GradientMatching(0.001)
    ),
    "disam+asam+gsam": lambda base, model: steppe.DISAM(
        base, rho=0.5, lam=0.1, model=model, geometry=steppe.Adaptive(0.01), descent=steppe.SurrogateGap(0.4)
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_steps_as_the_method_with_its_published_defaults(name: str) -> None:
    weights = []
    for build in (METHODS[name], lambda base, model: parse(name).build(base, model, parse(name).hyper({}))):
        model = a_model()
        weights.append(steps_of(build(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model), model))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_every_word_builds_alone_and_differs_from_every_other() -> None:
    found = {}
    for name in WORDS:
        model = a_model()
        recipe = parse(name)
        found[name] = steps_of(
            recipe.build(torch.optim.SGD(model.parameters(), lr=0.1), model, recipe.hyper({})), model
        )
    for one, other in itertools.combinations(found, 2):
        assert any(not torch.equal(a, b) for a, b in zip(found[one], found[other], strict=True)), (one, other)


@pytest.mark.parametrize("words", [("disam", "sagm"), ("disam", "asam", "gsam"), ("asam", "sagm")])
def test_the_order_of_words_does_not_matter(words: tuple[str, ...]) -> None:
    names = {parse("+".join(order)).name for order in itertools.permutations(words)}
    assert names == {"+".join(words)}


def test_spelling_is_forgiven_and_words_that_change_nothing_are_dropped() -> None:
    assert parse(" DISAM + sagm ").name == "disam+sagm"
    assert parse("sam+disam").name == "disam"
    assert parse("sam+sam").name == "sam"
    assert not parse("erm").climbs
    assert parse("sam").climbs


@pytest.mark.parametrize(
    ("name", "slot"), [("gsam+sagm", "descent"), ("disam+disam", "objective"), ("asam+disam+asam", "geometry")]
)
def test_two_words_for_one_slot_name_the_slot_and_both_words(name: str, slot: str) -> None:
    with pytest.raises(SteppeError) as caught:
        parse(name)
    assert repr(slot) in str(caught.value)
    rivals = [word for word in name.split("+") if slot in WORDS[word].fills]
    assert all(repr(word) in str(caught.value) for word in rivals)


def test_unknown_words_come_with_near_matches() -> None:
    with pytest.raises(SteppeError, match="unknown algorithm 'dism'; did you mean 'disam'"):
        parse("dism")
    with pytest.raises(SteppeError, match="unknown algorithm 'sgam'; did you mean"):
        parse("disam+sgam")
    with pytest.raises(SteppeError, match="unknown algorithm"):
        parse("disam+")


def test_erm_is_no_part_of_a_sum() -> None:
    with pytest.raises(SteppeError, match="'erm' climbs nowhere"):
        parse("erm+sam")


def test_hyper_parameters() -> None:
    assert parse("asam").hyper({}) == {"rho": 0.5, "eta": 0.01}
    assert parse("disam+asam").hyper({"lam": 0.3, "alpha": None}) == {"rho": 0.5, "eta": 0.01, "lam": 0.3}
    with pytest.raises(SteppeError, match="'sam' has no hyper-parameter 'lam'; it takes: rho"):
        parse("sam").hyper({"lam": 0.1})
    with pytest.raises(SteppeError, match="'erm' has no hyper-parameter 'rho'; it takes: none"):
        parse("erm").hyper({"rho": 0.1})


def test_gsam_with_a_smallest_radius_lets_it_fall_with_the_learning_rate() -> None:
    model = a_model()
    base = torch.optim.SGD(model.parameters(), lr=0.2)
    recipe = parse("gsam")
    optimizer = recipe.build(base, model, recipe.hyper({"rho": 0.1, "rho_min": 0.02}))
    assert isinstance(optimizer, steppe.SharpnessAware)
    for lr, rho in ((0.2, 0.1), (0.1, 0.06), (0.0, 0.02)):
        base.param_groups[0]["lr"] = lr
        steps_of(optimizer, model, 1)
        assert float(optimizer.diagnostics["radius"]) == pytest.approx(rho)


def test_every_word_says_what_it_does_and_fills_known_slots() -> None:
    for word in WORDS.values():
        assert word.summary
        assert word.source
        assert set(word.fills) <= set(SLOTS)
