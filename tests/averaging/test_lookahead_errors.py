"""Options out of range, optimizers that cannot be inside, and what cannot be pulled: refused early, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from problems import batches, losses_of, network, weights
from torch import nn

import steppe


def sgd(**options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(network().parameters(), lr=0.1, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": -3}, ValueError, "k must be at least 1, got -3"),
        ({"k": 2.0}, TypeError, r"k must be an integer, got 2\.0"),
        ({"k": True}, TypeError, "k must be an integer, got True"),
        ({"k": "5"}, TypeError, "k must be an integer, got '5'"),
        ({"k": None}, TypeError, "k must be an integer, got None"),
        ({"alpha": 0.0}, ValueError, r"alpha must be larger than 0 and at most 1, got 0\.0"),
        ({"alpha": -0.1}, ValueError, "alpha must be"),
        ({"alpha": 1.01}, ValueError, "alpha must be"),
        ({"alpha": float("nan")}, ValueError, "alpha must be .*nan"),
        ({"anchor": -1e-9}, ValueError, "anchor must be at least 0 and finite, got -1e-09"),
        ({"anchor": float("nan")}, ValueError, "anchor must be .*nan"),
        ({"anchor": float("inf")}, ValueError, "anchor must be .*inf"),
        ({"fast": "lats"}, steppe.SteppeError, "unknown fast 'lats'; did you mean 'last'"),
        ({"fast": None}, steppe.SteppeError, "unknown fast 'None'"),
        ({"anchor_reduction": "summ"}, steppe.SteppeError, "unknown anchor_reduction 'summ'; did you mean 'sum'"),
        ({"state": "pull_back"}, steppe.SteppeError, "unknown state 'pull_back'; did you mean 'pullback'"),
        ({"state": "x"}, steppe.SteppeError, "unknown state 'x'; known: carry, reset, pullback"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        steppe.Lookahead(sgd(), **options)


@pytest.mark.parametrize("number", [torch.tensor(3), 3])
def test_any_integer_will_do_for_k(number: Any) -> None:
    assert steppe.Lookahead(sgd(), k=number).k == 3


@pytest.mark.parametrize("thing", [None, network(), torch.optim.SGD, [torch.ones(1)]])
def test_what_is_no_optimizer(thing: Any) -> None:
    with pytest.raises(TypeError, match="instance, got"):
        steppe.Lookahead(thing)


def test_rounds_do_not_nest() -> None:
    inner = steppe.Lookahead(sgd())
    with pytest.raises(TypeError, match="rounds do not nest"):
        steppe.Lookahead(inner)
    between = steppe.SAM(sgd())
    between.base = inner
    with pytest.raises(TypeError, match="rounds do not nest"):
        steppe.Lookahead(between)


def test_what_accelerate_has_prepared_goes_outside() -> None:
    prepared = Accelerator(cpu=True).prepare(sgd())
    with pytest.raises(TypeError, match="AcceleratedOptimizer calls no hooks: put Lookahead around what it wraps"):
        steppe.Lookahead(prepared)


@pytest.mark.parametrize("around", [lambda base: base, steppe.SAM])
def test_what_is_maximised_cannot_be_anchored(around: Any) -> None:
    steppe.Lookahead(sgd(maximize=True))
    with pytest.raises(ValueError, match="maximize=True"):
        steppe.Lookahead(around(sgd(maximize=True)), anchor=1.0)
    model, problem = network(), batches(1)[0]
    optimizer = steppe.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), anchor=1.0)
    for maximised in (False, True):
        optimizer.param_groups[0]["maximize"] = maximised
        optimizer.zero_grad()
        losses_of(model, problem).mean().backward()
        before = weights(model)
        if not maximised:
            optimizer.step()
            continue
        with pytest.raises(ValueError, match="maximize=True"):
            optimizer.step()
        assert torch.equal(weights(model), before)
        assert optimizer.round_step == 1


def test_line_searches_cannot_be_anchored() -> None:
    lbfgs = torch.optim.LBFGS(network().parameters())
    steppe.Lookahead(lbfgs)
    with pytest.raises(TypeError, match="penalty"):
        steppe.Lookahead(lbfgs, anchor=1.0)


def test_a_state_that_is_made_with_the_optimizer_cannot_be_reset() -> None:
    adagrad = torch.optim.Adagrad(network().parameters())
    steppe.Lookahead(adagrad, state="pullback")
    with pytest.raises(ValueError, match="state='carry' or state='pullback'"):
        steppe.Lookahead(adagrad, state="reset")


def test_sparse_gradients_cannot_be_anchored() -> None:
    model = nn.Embedding(5, 3, sparse=True)
    plain, anchored = (
        steppe.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=2, anchor=anchor) for anchor in (0.0, 1.0)
    )
    for optimizer in (plain, anchored):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.tensor([1, 2])).sum().backward()
            if optimizer is anchored and optimizer.round_step:
                with pytest.raises(RuntimeError, match="sparse=False"):
                    optimizer.step()
            else:
                optimizer.step()
    assert plain.rounds == 1
    assert anchored.round_step == 1


def test_a_name_that_neither_has() -> None:
    optimizer = steppe.Lookahead(sgd())
    with pytest.raises(AttributeError, match="neither 'Lookahead' nor the 'SGD' inside has 'objective'"):
        _ = optimizer.objective
    with pytest.raises(AttributeError, match="no attribute '_stage'"):
        _ = steppe.Lookahead(steppe.SAM(sgd()))._stage


def test_fully_sharded_data_parallel_of_the_first_kind() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(ValueError, match="FSDP2"):
        steppe.Lookahead(sgd(), model=FullyShardedDataParallel())
