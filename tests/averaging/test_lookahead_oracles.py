"""Every variant of Lookahead around every kind of inner optimizer, in float64, against its formulas after each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import Problem, batches, closure_for, losses_of, network, weights, written_out
from round_formulas import BASES, INNER, VARIANTS, ByFormulas
from torch import Tensor, nn

import steppe

STEPS = 8
K = 3


def make(model: nn.Module, inner: str, base: str, **options: Any) -> steppe.Lookahead:
    within = INNER[inner][0](BASES[base](model.parameters()), model)
    return steppe.Lookahead(within, **{"k": K, "alpha": 0.4, **options})


def plain_closure(optimizer: steppe.Lookahead, model: nn.Module, problem: Problem) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = losses_of(model, problem).mean()
        loss.backward()
        return loss

    return closure


def step(optimizer: steppe.Lookahead, model: nn.Module, problem: Problem, how: str) -> None:
    """One step, called as the inner optimizer can be."""
    sharpness_aware = isinstance(optimizer.base, steppe.SharpnessAware)
    closure = (closure_for if sharpness_aware else plain_closure)(optimizer, model, problem)
    if how == "closure":
        optimizer.step(closure)
    elif sharpness_aware:
        written_out(optimizer, closure)
        optimizer.step()
    else:
        closure()
        optimizer.step()


def slow_weights(optimizer: steppe.Lookahead, model: nn.Module) -> Tensor:
    with optimizer.slow_weights():
        return weights(model)


CASES = [
    *((inner, base, variant, "carry") for inner in INNER for base in BASES for variant in VARIANTS),
    *((inner, base, "mean", state) for inner in ("none", "sam") for base in BASES for state in ("reset", "pullback")),
]


@pytest.mark.parametrize("how", ["closure", "without"])
@pytest.mark.parametrize(("inner", "base", "variant", "state"), CASES)
def test_every_step_agrees_with_the_formulas(inner: str, base: str, variant: str, state: str, how: str) -> None:
    model, problems = network(), batches(STEPS)
    optimizer = make(model, inner, base, state=state, **VARIANTS[variant])
    start = weights(model)
    formulas = ByFormulas(start, inner, base, K, state=state, **VARIANTS[variant])
    for problem in problems:
        step(optimizer, model, problem, how)
        formulas.step(problem)
        assert (weights(model) - formulas.theta).abs().max() < 1e-12
        assert (slow_weights(optimizer, model) - formulas.phi).abs().max() < 1e-12
        assert (optimizer.rounds, optimizer.round_step) == (formulas.rounds, len(formulas.round))
        assert optimizer.round_ended == (not formulas.round)
    assert formulas.rounds == STEPS // K
    assert (formulas.theta - start).norm() > 0.1


@pytest.mark.parametrize("name", ["pull", "alpha", "mean", "state"])
def test_the_cases_would_notice(name: str) -> None:
    """What an option changes is far above the tolerance."""
    other = {
        "pull": {"anchor": 0.05, "anchor_reduction": "sum"},
        "alpha": {"alpha": 0.41},
        "mean": {"fast": "mean"},
        "state": {"state": "pullback"},
    }[name]
    ends = []
    for options in ({}, other):
        formulas = ByFormulas(weights(network()), "sam", "adamw", K, **options)
        for problem in batches(STEPS):
            formulas.step(problem)
        ends.append(formulas.theta)
    assert (ends[0] - ends[1]).abs().max() > 1e-4


def test_the_mean_is_that_of_the_rounds_fast_weights() -> None:
    """Brute force: the fast weights are watched, and φ is moved by hand. They do not depend on φ within a round."""
    model, problems = network(), batches(10)
    optimizer = make(model, "none", "momentum", k=10, alpha=0.3, fast="mean")
    phi, seen = weights(model), []
    optimizer.register_step_post_hook(lambda *_: seen.append(weights(model)))
    optimizer.base.register_step_post_hook(lambda *_: seen.append(weights(model)))
    for problem in problems:
        step(optimizer, model, problem, "closure")
    fast = seen[::2]
    assert len(fast) == 10
    assert all(torch.equal(before, after) for before, after in zip(fast[:9], seen[1:18:2], strict=True))
    expected = phi + 0.3 * (sum(fast) / 10 - phi)
    assert (weights(model) - expected).abs().max() < 1e-15
    assert torch.equal(seen[-1], weights(model))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_anchor_is_the_gradient_of_the_penalty_added_to_the_loss(reduction: str) -> None:
    """The loss with the penalty as a graph, on a plain base, against none in ours; frozen numbers do not count."""
    finals, strength = [], {"mean": 5.0, "sum": 0.05}[reduction]
    for graph in (False, True):
        model = network(normalise=True)
        model[0].bias.requires_grad_(False)
        base = BASES["adamw"](model.parameters())
        options = {} if graph else {"anchor": strength, "anchor_reduction": reduction}
        optimizer = steppe.Lookahead(base, k=4, alpha=0.5, **options)
        trained = [p for p in model.parameters() if p.requires_grad]
        history: list[list[Tensor]] = []
        for problem in batches(7):
            optimizer.zero_grad()
            loss = losses_of(model, problem).mean()
            if graph and history:
                means = [torch.stack(each).mean(0) for each in zip(*history, strict=True)]
                squares = torch.cat([(p - m).reshape(-1) ** 2 for p, m in zip(trained, means, strict=True)])
                loss = loss + strength * getattr(squares, reduction)()
            loss.backward()
            optimizer.step()
            history.append([p.detach().clone() for p in trained])
            if optimizer.round_ended:
                history = []
        finals.append(weights(model))
    assert (finals[0] - finals[1]).abs().max() < 1e-12
    assert torch.equal(model[0].bias, network(normalise=True)[0].bias)
