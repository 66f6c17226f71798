"""DistributedDataParallel: the replicas stay bit-equal, whatever is asked of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import Problem, batches, losses_of, network, weights
from ranks import launch
from shard_formulas import FORMULAS, PerShard
from spread import BASES, DOMAINS, METHODS, overflowing_factor, sgd, shards, train
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steppe

pytestmark = pytest.mark.slow

STEPS = 10
SIZES = (5, 11)


class Branching(nn.Module):
    """BatchNorm, a layer that is never used, and one that each call of each rank uses or not by chance."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.never, self.sometimes = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.first(x.float())))
        if torch.rand(()) < 0.5:
            h = h + self.sometimes(h)
        return self.last(h)


def closure_of(optimizer: steppe.SharpnessAware, ddp: Any, micro: list[Any], no_sync: bool) -> Callable[[], Tensor]:
    """Gradient accumulation as a user writes it: all micro-batches in one pass, reduced with the last."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for i, problem in enumerate(micro):
            with ddp.no_sync() if no_sync and i + 1 < len(micro) else nullcontext():
                loss = optimizer.objective(losses_of(ddp, problem), problem.domain) / len(micro)
                loss.backward()
            total = total + loss.detach()
        return total

    return closure


def joined() -> list[Problem]:
    return batches(STEPS, samples=sum(SIZES), domains=DOMAINS)


def replicas(rank: int, options: dict[str, Any], bases: list[str], settings: dict[str, Any]) -> dict[str, Tensor]:
    """The weights after ten steps; every setting of accumulation in turn."""
    result = {}
    for base in bases:
        for name, make in METHODS.items():
            model = Branching()
            ddp = DistributedDataParallel(model, **settings)
            optimizer = make(BASES[base](model), ddp, **options)
            torch.manual_seed(rank)
            for step, problem in enumerate(joined()):
                micro = [shards(problem, SIZES)[rank]] if step % 3 == 0 else [shards(problem, SIZES)[rank]] * 2
                optimizer.step(closure_of(optimizer, ddp, micro, no_sync=step % 3 == 1))
            assert model.norm.num_batches_tracked == 4 + 2 * 6  # the clean pass's micro-batches, and no other
            result[f"{name} on {base}"] = weights(model)
    return result


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {"find_unused_parameters": True}),
        ({"global_ascent": True}, {"find_unused_parameters": True, "gradient_as_bucket_view": True}),
    ],
    ids=["each its own climb", "one climb"],
)
def test_replicas_are_bit_equal_after_ten_steps(options, settings, tmp_path: Path) -> None:
    first, second = launch(replicas, 2, tmp_path, options, ["momentum", "adamw"], settings)
    assert {name: float((first[name] - second[name]).abs().max()) for name in first} == dict.fromkeys(first, 0.0)
    assert all(torch.isfinite(values).all() for values in first.values())


def overflowing(rank: int, options: dict[str, Any]) -> dict[str, Any]:
    """Six steps with a scaler; in the third one rank overflows in the first pass, in the fourth in the second."""
    result = {}
    for name, make in METHODS.items():
        model = network().float()
        ddp = DistributedDataParallel(model)
        optimizer = make(BASES["adamw"](model), ddp, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
        faults = []
        for step, problem in enumerate(joined()[:6]):
            mine = shards(problem, SIZES)[rank]
            calls = count(1)

            def closure(
                optimizer=optimizer, ddp=ddp, mine=mine, scaler=scaler, step=step, calls=calls, name=name
            ) -> Tensor:
                optimizer.zero_grad()
                losses = losses_of(ddp, Problem(mine.x.float(), mine.y, mine.domain))
                loss = scaler.scale(optimizer.objective(losses, mine.domain))
                if rank == 1 and step in (2, 3) and next(calls) == step - 1:
                    loss = loss * (overflowing_factor(name) if step == 2 else float("inf"))
                loss.backward()
                return loss

            before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            climbs = optimizer.climbs
            optimizer.step(closure, scaler=scaler)
            skipped = step == 2 or (step == 3 and climbs)
            if skipped != (scaler._found_inf_per_device(optimizer.base)[torch.device("cpu")].item() > 0):
                faults.append(f"step {step}: it was to be {'skipped' if skipped else 'made'}")
            after = (model.state_dict(), optimizer.state_dict())
            if skipped and not same({**before[1], "model": before[0]}, {**after[1], "model": after[0]}):
                faults.append(f"step {step}: it was skipped and yet changed something")
            scaler.update()
        result[name] = (weights(model), scaler.get_scale(), faults)
    return result


def same(one: Any, other: Any) -> bool:
    """Whether nested containers are equal bit for bit, but for θ_{t−1}, which a climb that is not followed forgets."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one if k != "previous")
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("options", [{}, {"global_ascent": True}], ids=["each its own climb", "one climb"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(options, tmp_path: Path) -> None:
    first, second = launch(overflowing, 2, tmp_path, options)
    for name in METHODS:
        assert torch.equal(first[name][0], second[name][0]), name
        assert torch.isfinite(first[name][0]).all(), name
        assert first[name][1] == second[name][1] < 1024.0, name
        assert first[name][2] == second[name][2] == [], name


def unusual(rank: int) -> dict[str, Any]:
    """What else may surround DDP: a module that holds several, a compiler, a loop that measures on one rank."""
    result: dict[str, Any] = {}
    torch.manual_seed(0)
    first, second = nn.Linear(6, 8).double(), nn.Linear(8, 3).double()
    pair = nn.Sequential(DistributedDataParallel(first), nn.Tanh(), DistributedDataParallel(second))
    optimizer = steppe.GSAM(torch.optim.SGD(pair.parameters(), lr=0.1), rho=0.3, model=pair)
    for problem in joined():
        mine = shards(problem, SIZES)[rank]
        optimizer.step(closure_of(optimizer, pair, [mine], no_sync=False))
        if rank == 0:
            with torch.no_grad():  # no rank waits for another where no gradient is asked for
                optimizer.objective(losses_of(nn.Sequential(first, nn.Tanh(), second), mine), mine.domain)
    result["pair of gsam"] = weights(pair)
    for name in ("gsam", "tram"):
        model = network()
        compiled = torch.compile(DistributedDataParallel(model), backend="eager")
        optimizer = METHODS[name](sgd(model), compiled)
        train(optimizer, compiled, [shards(problem, SIZES)[rank] for problem in joined()])
        result[name] = weights(model)
    static = DistributedDataParallel(network(), static_graph=True)
    with pytest.raises(ValueError, match="static_graph=True"):
        steppe.SAM(sgd(static), model=static)
    steppe.SAM(sgd(static), model=static, global_ascent=True)
    half = DistributedDataParallel(nn.Linear(6, 3).bfloat16())
    with pytest.raises(ValueError, match="climb_dtype is impossible with DistributedDataParallel"):
        steppe.SAM(sgd(half), model=half, climb_dtype=torch.float32)
    told_later = steppe.SAM(sgd(half), climb_dtype=torch.float32)
    with pytest.raises(ValueError, match="climb_dtype is impossible with DistributedDataParallel"):
        told_later.attach(half)
    wide = DistributedDataParallel(network())
    steppe.SAM(sgd(wide), model=wide, climb_dtype=torch.float32)  # nothing is exchanged
    return result


def test_several_wrappers_compiled_ones_and_those_that_cannot_serve(tmp_path: Path) -> None:
    first, second = launch(unusual, 2, tmp_path)
    for case in ("pair of gsam", "gsam", "tram"):
        oracle = PerShard(FORMULAS[case.removeprefix("pair of ")], 0.1, weights(network()))
        for problem in joined():
            oracle.step(shards(problem, SIZES))
        assert torch.equal(first[case], second[case])
        torch.testing.assert_close(first[case], oracle.w, atol=1e-10, rtol=0)
