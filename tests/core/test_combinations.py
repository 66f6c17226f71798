"""Any choice of the four parts, with what wraps them and what divides the batch, against the formulas."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import (
    DIVERGENCES,
    Oracle,
    adaptive,
    bias_mask,
    first,
    fisher,
    friendly,
    half_sum,
    parts,
    smoothed,
    surrogate_gap,
    trust,
)
from problems import Noise, batches, network, train, weights

import steppe

LR = 0.1


@dataclass
class Choice:
    """A method as the engine takes it, and as the oracle does."""

    name: str
    make: dict[str, Any]
    formulas: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda value: round(value, 3))


@st.composite
def objectives(draw) -> Choice:
    lam = draw(st.one_of(st.just(0.0), between(0.05, 2.0)))
    objective = draw(st.sampled_from([steppe.DomainVariance(lam), steppe.Mean()])) if lam == 0 else None
    return Choice(f"λ={lam}", {"objective": objective or steppe.DomainVariance(lam)}, {"lam": lam})


@st.composite
def geometries(draw, model) -> Choice:
    kind = draw(st.sampled_from(["euclidean", "adaptive", "adaptive-weights", "fisher", "noised", "noised-shared"]))
    eta = draw(between(0.01, 0.5))
    choice = {
        "euclidean": Choice(kind, {"geometry": steppe.Euclidean()}),
        "adaptive": Choice(kind, {"geometry": steppe.Adaptive(eta)}, {"direction": adaptive(eta)}),
        "adaptive-weights": Choice(
            kind, {"geometry": steppe.Adaptive(eta, True)}, {"direction": adaptive(eta, bias_mask(model))}
        ),
        "fisher": Choice(kind, {"geometry": steppe.Fisher(100 * eta)}, {"direction": fisher(100 * eta)}),
        "noised": Choice(
            kind,
            {"geometry": steppe.NoisedFisher(model, 100 * eta, sigma=0.5)},
            {"direction": fisher(100 * eta), "noised": "f"},
        ),
        "noised-shared": Choice(
            kind,
            {"geometry": steppe.NoisedFisher(model, 100 * eta, sigma=0.5, shared_pass=True)},
            {"direction": fisher(100 * eta), "noised": "a"},
        ),
    }[kind]
    wrapper = draw(st.sampled_from(["", "friendly", "smoothed"]))
    sigma, weight = draw(between(0.0, 0.8)), draw(between(0.1, 0.9))
    geometry = choice.make["geometry"]
    if wrapper == "friendly":
        choice.make["geometry"] = steppe.Friendly(geometry, sigma, weight)
        choice.formulas["climbed"] = friendly(sigma, weight)
    elif wrapper == "smoothed":
        choice.make["geometry"] = steppe.Smoothed(geometry, weight)
        choice.formulas["climbed"] = smoothed(weight)
    choice.name = f"{wrapper} {kind} {eta} {sigma} {weight}"
    return choice


@st.composite
def radii(draw, model) -> Choice:
    kind = draw(st.sampled_from(["number", "schedule", "previous", "initial", "ema", "noise"]))
    if kind == "number":
        rho = draw(between(0.01, 0.5))
        return Choice(f"ρ={rho}", {"radius": rho}, {"rho": rho})
    if kind == "schedule":
        rho = draw(between(0.01, 0.5))
        return Choice(f"ρ∝lr {rho}", {"radius": steppe.Proportional(rho, 0.0, lr_max=LR)}, {"rho": rho})
    divergence = draw(st.sampled_from(sorted(DIVERGENCES)))
    cap = draw(st.sampled_from([None, 0.1]))
    region = steppe.TrustRegion(model, kind, divergence, max_radius=cap, sigma=0.5, decay=0.8)
    rho = trust(kind, divergence, 0.8, float("inf") if cap is None else cap)
    return Choice(f"{kind} {divergence} cap={cap}", {"radius": region}, {"rho": rho})


@st.composite
def descents(draw) -> Choice:
    kind = draw(st.sampled_from(["perturbed", "gsam", "sagm"]))
    alpha, shared = draw(between(0.0, 0.5)), draw(st.booleans())
    every = draw(st.sampled_from([1, 2, 3]))
    choice = {
        "perturbed": Choice("", {"descent": steppe.Perturbed()}),
        "gsam": Choice("", {"descent": steppe.SurrogateGap(alpha, shared)}, {"descent": surrogate_gap(alpha)}),
        "sagm": Choice(
            "", {"descent": steppe.GradientMatching(alpha, shared)}, {"descent": half_sum, "retreat": alpha}
        ),
    }[kind]
    choice.name = f"{kind} {alpha} shared={shared} every {every}"
    if every > 1:
        choice.make["descent"] = steppe.Reuse(every, 0.3, choice.make["descent"], shared)
        choice.formulas |= {"every": every, "alpha": 0.3}
    if every > 1 or kind != "perturbed":
        choice.formulas["shared"] = shared
    return choice


@st.composite
def divisions(draw) -> Choice:
    fraction, m = draw(st.sampled_from([(1.0, 1), (1.0, 1), (0.5, 1), (0.2, 1), (1.0, 2), (1.0, 3)]))
    formulas = {"seen": first(fraction)} if fraction < 1 else {"divide": parts(m)} if m > 1 else {}
    return Choice(f"fraction={fraction} m={m}", {"ascent_fraction": fraction, "m": m}, formulas)


@st.composite
def methods(draw, model) -> Choice:
    made, names, formulas = {"model": model}, [], {}
    for part in (objectives(), geometries(model), radii(model), descents(), divisions()):
        choice = draw(part)
        names.append(choice.name)
        made |= choice.make
        formulas |= choice.formulas
    return Choice(", ".join(names), made, formulas)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(), samples=st.integers(4, 20), domains=st.integers(1, 4), how=st.sampled_from(["closure", "passes"])
)
def test_any_choice_of_parts_agrees_with_the_formulas(data, samples: int, domains: int, how: str) -> None:
    model = network()
    choice = data.draw(methods(model))
    made, formulas = choice.make, choice.formulas
    # A second climb leaves no θ_{t−1} (test_parts_of_the_batch holds that it is refused).
    assume(made["m"] == 1 or not getattr(made["radius"], "needs_previous", False))
    # Two noises on one call: which is whose cannot be read off the first layer.
    assume("noise " not in choice.name or formulas.get("noised") != "a")
    problems = batches(5, samples=samples, domains=domains)
    optimizer = steppe.SharpnessAware(torch.optim.SGD(model.parameters(), lr=LR), **made)
    noise, start = Noise(model), weights(model)
    train(optimizer, model, problems, how)
    w = Oracle(network(), LR, noise=noise.drawn, **formulas).run(start, problems)
    assert (w - start).norm() > 1e-2
    torch.testing.assert_close(weights(model), w, atol=1e-10, rtol=1e-10)
    assert not noise.drawn  # every z was accounted for


@pytest.mark.parametrize("around", [steppe.Friendly, steppe.Smoothed])
def test_one_memory_does_not_go_inside_another(around) -> None:
    with pytest.raises(ValueError, match="has a memory of its own"):
        around(steppe.Smoothed())
    with pytest.raises(ValueError, match="has a memory of its own"):
        steppe.Reuse(descent=steppe.Reuse())


@pytest.mark.parametrize("around", [steppe.Friendly, steppe.Smoothed])
def test_what_a_geometry_asks_for_is_asked_for_by_what_wraps_it(around) -> None:
    """A pass of its own, the model whose running statistics are kept clean, names."""
    model, problem = network(normalise=True), batches(1)[0]
    optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), geometry=around(steppe.NoisedFisher(model)))
    assert optimizer.parts.measures
    train(optimizer, model, [problem])
    assert model[1].num_batches_tracked == 1
    with pytest.raises(ValueError, match="needs parameter names"):
        steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), geometry=around(steppe.Adaptive(weights_only=True)))


def test_a_part_that_is_wrapped_is_told_what_it_would_be_alone() -> None:
    """What it may have beside its protocol: a look at every pass, and at every step made."""

    class Watching:
        needs_previous = True

        def __init__(self) -> None:
            self.told: list[str] = []

        @contextmanager
        def watch(self, view):
            self.told.append(view.name)
            yield

        def stepped(self, view) -> None:
            self.told.append("stepped" if view.previous is not None else "previous is missing")

    class Geometry(Watching, steppe.Euclidean):
        pass

    class Descent(Watching, steppe.Perturbed):
        pass

    for part, wrapped in ((Geometry(), {"geometry": steppe.Friendly}), (Descent(), {"descent": steppe.Reuse})):
        ((slot, wrapper),) = wrapped.items()
        model = network()
        around = wrapper(part) if slot == "geometry" else wrapper(1, descent=part)
        optimizer = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), **{slot: around})
        train(optimizer, model, batches(2))
        assert part.told == ["climb", "descent", "stepped"] * 2


def test_a_descent_that_shares_the_climbs_gradient_does_so_where_climbs_are_reused() -> None:
    model = network()
    for descent in (steppe.GradientMatching(shared=True), steppe.SurrogateGap(shared=True), steppe.Perturbed()):
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = steppe.DISAM(base, descent=steppe.Reuse(2, descent=descent))
        assert optimizer.needs_clean_pass is isinstance(descent, steppe.Perturbed)
