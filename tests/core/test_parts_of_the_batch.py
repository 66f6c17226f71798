"""A climb on a part of the batch, and m climbs on m parts of it (the oracles hold what is computed from them)."""

from __future__ import annotations

from collections import UserDict, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import stratified
from problems import Problem, batches, closure_for, losses_of, network, train, weights

import steppe
from steppe.batches import stratified_order

DOMAINS = st.lists(st.integers(-2, 4), min_size=1, max_size=40)


def parts_seen(optimizer, *batch, domain=None) -> dict[str, list]:
    """What ascent_batch gives in each pass of a step, by the pass."""
    seen: dict[str, list] = {}
    parameter = optimizer.parameters()[0]
    for each in optimizer.passes():
        with each:
            name = optimizer._stage.phase
            seen.setdefault(name, []).append(optimizer.ascent_batch(*batch, domain=domain))
            parameter.sum().backward()
    optimizer.step()
    return seen


def sam(**options) -> steppe.SharpnessAware:
    return steppe.SAM(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), **options)


# --- which samples ---


@settings(max_examples=100, deadline=None)
@given(domain=DOMAINS)
def test_every_stretch_from_the_first_has_the_domains_in_their_proportions(domain: list[int]) -> None:
    order = stratified_order(torch.tensor(domain))
    assert sorted(order.tolist()) == list(range(len(domain)))
    assert order.tolist() == stratified(Problem(*[torch.tensor(domain)] * 3)).tolist()
    ids = sorted(set(domain))
    for length in range(len(domain) + 1):
        chosen = [domain[i] for i in order[:length].tolist()]
        for i in ids:
            fair = length * domain.count(i) / len(domain)
            assert abs(chosen.count(i) - fair) <= max(1, len(ids) - 1)
    if len({domain.count(i) for i in ids}) == 1:
        assert {domain[i] for i in order[: len(ids)].tolist()} == set(ids)


@settings(max_examples=50, deadline=None)
@given(domain=st.lists(st.integers(0, 3), min_size=6, max_size=30), m=st.integers(2, 6))
def test_m_parts_are_the_batch(domain: list[int], m: int) -> None:
    samples, domains = torch.arange(len(domain)), torch.tensor(domain)
    seen = parts_seen(sam(m=m), samples, domain=domains)
    for name in ("climb", "descent"):
        assert len(seen[name]) == m
        assert sorted(torch.cat([x for x, _ in seen[name]]).tolist()) == samples.tolist()
        assert max(len(x) for x, _ in seen[name]) - min(len(x) for x, _ in seen[name]) <= 1
        assert all(torch.equal(d, domains[x]) for x, d in seen[name])  # still each sample's own
    assert all(torch.equal(a, b) for a, b in zip(*([x for x, _ in seen[n]] for n in ("climb", "descent")), strict=True))


def test_domains_of_one_size_are_divided_evenly() -> None:
    domain = torch.arange(24) % 4
    for part, own in parts_seen(sam(m=3), torch.arange(24), domain=domain)["climb"]:
        assert torch.bincount(own).tolist() == [2, 2, 2, 2]
        assert len(part) == 8
    (part, own), *_ = parts_seen(sam(ascent_fraction=0.5), torch.arange(24), domain=domain.sort()[0])["climb"]
    assert torch.bincount(own).tolist() == [3, 3, 3, 3]


def test_without_domains_parts_are_contiguous_and_a_fraction_the_first() -> None:
    x = torch.arange(10)
    assert [part.tolist() for part in parts_seen(sam(m=3), x)["climb"]] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for fraction, expected in {0.25: 2, 0.01: 1, 0.5: 5, 0.99: 10, 1.0: 10}.items():
        seen = parts_seen(sam(ascent_fraction=fraction), x)
        assert torch.equal(seen["climb"][0], x[:expected])
        assert seen["descent"][0] is x


def test_a_clean_pass_sees_the_whole_batch_and_what_belongs_to_the_climb_a_part() -> None:
    model = network()
    optimizer = steppe.DISAM(
        torch.optim.SGD(model.parameters(), lr=0.1),
        geometry=steppe.NoisedFisher(model),
        descent=steppe.SurrogateGap(),
        ascent_fraction=0.2,
        accumulate="exact",
    )
    sizes = []
    for each in optimizer.passes():
        with each:
            (problem,) = batches(1)
            x, y, domain = optimizer.ascent_batch(problem.x, problem.y, domain=problem.domain)
            sizes.append((optimizer._stage.phase, len(x)))
            optimizer.objective(losses_of(model, Problem(x, y, domain)), domain).backward()
    assert sizes == [("survey", 3), ("clean", 15), ("measure", 3), ("climb", 3), ("descent", 15)]


# --- what a batch may be ---


def test_batches_are_nested_containers() -> None:
    Pair = namedtuple("Pair", "first second")
    x, y = torch.arange(8.0), torch.arange(8, 16)
    batch = {"inputs": [x, Pair(x, y)], "ids": "a string", "count": 3, "none": None}
    optimizer = sam(ascent_fraction=0.5)
    whole = optimizer.ascent_batch(batch)
    assert whole is batch  # outside a step: all of it, bare
    (part,) = parts_seen(optimizer, batch)["climb"]
    assert part["ids"] == "a string"
    assert part["count"] == 3
    assert part["none"] is None
    assert isinstance(part["inputs"][1], Pair)
    assert torch.equal(part["inputs"][0], x[:4])
    assert torch.equal(part["inputs"][1].second, y[:4])
    (part,) = parts_seen(optimizer, UserDict(batch, ids=UserDict(x=y)))["climb"]  # as tokenizers give
    assert torch.equal(part["inputs"][0], x[:4])
    assert torch.equal(part["ids"]["x"], y[:4])
    ((first, second),) = parts_seen(optimizer, x, {"labels": y})["climb"]
    assert torch.equal(second["labels"], y[: len(first)])
    ((first, domain),) = parts_seen(optimizer, x, domain=y)["climb"]
    assert torch.equal(domain, y[first.long()])


@pytest.mark.parametrize(
    ("batch", "domain", "message"),
    [
        (("no tensor", 3), None, "at least one tensor"),
        ((torch.ones(4), torch.ones(3)), None, r"one length, got \[4, 3\]"),
        (({"x": torch.ones(4), "y": [torch.ones(5)]},), None, r"one length, got \[4, 5\]"),
        ((torch.ones(4),), torch.zeros(3, dtype=torch.long), r"one length, got \[4, 3\]"),
        ((torch.ones(1),), None, "a batch of 1 cannot be divided into m = 2 parts"),
    ],
)
def test_what_is_no_batch_is_refused(batch, domain, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts_seen(sam(m=2), *batch, domain=domain)


def test_options_that_make_no_sense_are_refused() -> None:
    for fraction in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="ascent_fraction must be larger than 0 and at most 1"):
            sam(ascent_fraction=fraction)
    for m in (0, 2.5):
        with pytest.raises(ValueError, match="m must be a whole number of at least 1"):
            sam(m=m)
    with pytest.raises(ValueError, match="exclude each other"):
        sam(m=2, ascent_fraction=0.5)
    model = network()
    with pytest.raises(ValueError, match="no copy of the weights one step ago"):
        steppe.TRAM(torch.optim.SGD(model.parameters(), lr=0.1), model, m=2)


@pytest.mark.parametrize("options", [{"ascent_fraction": 0.5}, {"m": 2}], ids=str)
def test_a_closure_that_does_not_ask_for_its_part_is_told_so(options) -> None:
    model, problem = network(), batches(1)[0]
    optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), **options)
    before = weights(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = losses_of(model, problem).mean()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="ascent_batch"):
        optimizer.step(closure)
    closure()
    with pytest.raises(RuntimeError, match="cannot divide the batch"), optimizer.perturbed():
        pass
    assert torch.equal(weights(model), before)


# --- steps that do not climb, and the loss that is returned ---


def test_a_step_that_reuses_a_climb_sees_the_whole_batch() -> None:
    model = network()
    optimizer = steppe.LookSAM(torch.optim.SGD(model.parameters(), lr=0.1), every=2, m=3)
    passes = []
    for problem in batches(4):
        sizes = []

        def note(_, sizes=sizes) -> None:
            sizes.append(optimizer._stage.phase)

        optimizer.step(closure_for(optimizer, model, problem, note))
        passes.append(len(sizes) // 2)
    assert passes == [6, 1, 6, 1]


@pytest.mark.parametrize("returned", [lambda loss: loss, torch.Tensor.item], ids=["tensor", "number"])
def test_the_loss_of_unequal_parts_is_the_mean_over_the_samples(returned) -> None:
    model, problem = network(), batches(1, samples=14)[0]
    optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), m=4)
    with torch.no_grad():
        expected = losses_of(model, problem).mean()
    closure = closure_for(optimizer, model, problem)
    loss = optimizer.step(lambda: returned(closure()))
    assert float(loss) == pytest.approx(expected.item(), rel=1e-14)
    assert optimizer.diagnostics["loss_rise"] > 0


def test_the_rise_of_the_loss_is_only_given_where_it_is_that_of_the_same_samples() -> None:
    model, problems = network(), batches(2)
    for options, known in (
        ({"ascent_fraction": 0.5}, False),
        ({"ascent_fraction": 0.5, "descent": steppe.SurrogateGap()}, True),  # with a pass for ∇L(w)
        ({"m": 3}, True),
        ({"geometry": steppe.NoisedFisher(model)}, True),
        ({"geometry": steppe.NoisedFisher(model, shared_pass=True)}, False),  # at w it saw noised inputs
    ):
        optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), **options)
        train(optimizer, model, problems)
        assert ("loss_rise" in optimizer.diagnostics) is known, options
