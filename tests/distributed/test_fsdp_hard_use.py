"""FSDP2 where it is easy to go wrong: stale gathered weights, accumulation, precision, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import Problem, losses_of
from ranks import launch
from sharded import LAYOUTS, SIZES, STEPS, Deep, Rooted, gathered, joined, layers, on_one, whole_weights, wrong
from spread import METHODS, adamw, closure_of, sgd, shards, train
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.checkpoint import checkpoint

import steppe

pytestmark = pytest.mark.slow


def accumulated(rank: int) -> dict[Any, Tensor]:
    """Two micro-batches, reduced with the last, in the ways that FSDP2 knows; and evaluations in between."""
    result = {}
    for layout, (kind, divide) in LAYOUTS.items():
        for name in ("sam", "disam+sagm", "tram", "tram, mmd", "tram-fisher", "friendly"):
            for way in ("each is reduced", "the last is reduced", "the last ends it"):
                if layout == "root" and way != "the last is reduced":
                    continue
                model = kind()
                divide(model)
                optimizer = METHODS[name](sgd(model, 0.3), model, accumulate="exact")
                for step, problem in enumerate(joined()):
                    mine = shards(problem, SIZES)[rank]
                    optimizer.step(micro_batches(optimizer, model, mine, way))
                    if step % 2:
                        with torch.no_grad():
                            model(mine.x)
                result[layout, name, way] = whole_weights(model)
    return result


def micro_batches(optimizer: Any, model: Any, mine: Problem, way: str) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for last, part in enumerate(shards(mine, (len(mine.x) // 3, 2 * len(mine.x) // 3))):
            if way == "the last is reduced":
                model.set_requires_gradient_sync(bool(last))
            if way == "the last ends it":
                model.set_is_last_backward(bool(last))
            share = len(part.x) / len(mine.x)
            loss = share * optimizer.objective(losses_of(model, part), part.domain)
            loss.backward()
            total = total + loss.detach()
        return total

    return closure


def test_micro_batches_are_one_large_batch(tmp_path: Path) -> None:
    found = launch(accumulated, 2, tmp_path)
    expected = {(kind, name): on_one(kind, name) for kind in (Deep, Rooted) for name in {case[1] for case in found[0]}}
    assert wrong(found, lambda case: expected[LAYOUTS[case[0]][0], case[1]]) == {}


def dealt(rank: int, steps: int = STEPS) -> list[Problem]:
    """What one rank sees of the joined batches."""
    return [shards(problem, SIZES)[rank] for problem in joined(steps)]


def measured_in_the_closure(rank: int) -> nn.Module:
    """The trust region is told between forward and backward pass."""
    model = Rooted()
    gathered(model)
    optimizer = METHODS["tram, ema"](sgd(model, 0.3), model)
    for problem in dealt(rank):

        def measured(problem: Problem = problem) -> Tensor:
            optimizer.zero_grad()
            logits = model(problem.x)
            optimizer.trust(logits, problem.x)
            losses = nn.functional.cross_entropy(logits, problem.y, reduction="none")
            loss = optimizer.objective(losses, problem.domain)
            loss.backward()
            return loss

        optimizer.step(measured)
    return model


def checkpointed(rank: int) -> nn.Module:
    """A layer runs once more in the backward pass."""
    model = Deep()
    forward = model[2].forward
    model[2].forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    layers(model)
    train(METHODS["disam+sagm"](sgd(model, 0.3), model), model, dealt(rank))
    return model


def compiled(rank: int) -> nn.Module:
    """A compiled model is watched."""
    model = Deep()
    layers(model)
    called = torch.compile(model, backend="eager")
    train(METHODS["tram"](sgd(model, 0.3), called), called, dealt(rank))
    return model


def two_parts_a_rank(rank: int) -> nn.Module:
    """Together they are the two parts of the batch that has them in this order."""
    model = Deep()
    layers(model)
    optimizer = METHODS["gsam"](sgd(model, 0.3), model, m=2)
    for problem in joined():
        parts = shards(problem, (4, 8, 4, 8))
        x, y, domain = (torch.cat(pair) for pair in zip(*map(contents, (parts[rank], parts[rank + 2])), strict=True))
        train(optimizer, model, [Problem(x, y, domain)])
    return model


def contents(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    return problem.x, problem.y, problem.domain


def clipped(rank: int) -> nn.Module:
    """The passes written out, and gradients clipped before the step."""
    model = Deep()
    layers(model)
    return clipping(model, dealt(rank))


def clipping(model: nn.Module, problems: list[Problem]) -> nn.Module:
    optimizer = METHODS["gsam"](sgd(model, 0.3), model)
    for problem in problems:
        closure = closure_of(optimizer, model, problem)
        for each in optimizer.passes():
            with each:
                closure()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return model


def sharded_afterwards(rank: int) -> nn.Module:
    """A library divides the model after the optimizer was made, and changes the parameters."""
    model = Rooted()
    optimizer = METHODS["disam+tram+look+sagm"](sgd(model, 0.3), model)
    layers(model)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    with pytest.raises(RuntimeError, match="sharded after"):
        train(optimizer, model, dealt(rank))
    optimizer.attach(model)
    train(optimizer, model, dealt(rank))
    return model


WAYS: dict[Callable[[int], nn.Module], Callable[[], Tensor]] = {
    measured_in_the_closure: lambda: on_one(Rooted, "tram, ema"),
    checkpointed: lambda: on_one(Deep, "disam+sagm"),
    compiled: lambda: on_one(Deep, "tram"),
    two_parts_a_rank: lambda: on_one(Deep, "gsam", m=2),
    clipped: lambda: whole_weights(clipping(Deep(), joined())),
    sharded_afterwards: lambda: on_one(Rooted, "disam+tram+look+sagm"),
}
"""Ways to train, and the weights of one process on the joined batch."""


def otherwise(rank: int) -> dict[str, Tensor]:
    return {way.__name__: whole_weights(way(rank)) for way in WAYS}


def test_other_ways_to_train(tmp_path: Path) -> None:
    expected = {way.__name__: weights() for way, weights in WAYS.items()}
    assert wrong(launch(otherwise, 2, tmp_path), expected.__getitem__) == {}


def in_bf16(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """bf16 for what is gathered, float32 for the shards: weights and radius of every method."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    result = {}
    for name, make in METHODS.items():
        model = Rooted().float()
        layers(model, mp_policy=policy)
        optimizer = make(adamw(model), model)
        train(optimizer, model, [in_float32(problem) for problem in dealt(rank, steps=3)])
        result[name] = (whole_weights(model), optimizer.diagnostics["radius"])
    return result


def in_float32(problem: Problem) -> Problem:
    return Problem(problem.x.float(), problem.y, problem.domain)


def test_weights_gathered_in_bf16(tmp_path: Path) -> None:
    first, second = launch(in_bf16, 2, tmp_path)
    assert first.keys() == METHODS.keys()
    start = whole_weights(Rooted().float())
    for name, (weights, radius) in first.items():
        assert torch.equal(weights, second[name][0]), name
        assert torch.equal(radius, second[name][1]), name
        assert torch.isfinite(weights).all(), name
        assert weights.dtype == torch.float32
        assert (weights - start).norm() > 0.01, name


def refused(rank: int) -> None:
    model = Rooted().float()
    layers(model)
    for fault, options in (
        ("global_ascent=False is impossible", {"model": model, "global_ascent": False}),
        ("must know the model", {}),
    ):
        with pytest.raises(ValueError, match=fault):
            steppe.SAM(sgd(model), **options)
    optimizer = steppe.SAM(sgd(model), model=model, climb_dtype=torch.float32)
    with pytest.raises(RuntimeError, match="climb_dtype cannot exchange sharded"):
        train(optimizer, model, [in_float32(problem) for problem in dealt(rank, steps=1)])


def test_what_sharded_parameters_cannot_have_is_refused(tmp_path: Path) -> None:
    launch(refused, 2, tmp_path)
