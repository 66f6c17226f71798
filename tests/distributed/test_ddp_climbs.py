"""DistributedDataParallel: one climb is that of one process on the joined batch, own climbs are the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from problems import Problem, batches, losses_of, network, weights
from problems import train as train_any_way
from ranks import launch
from shard_formulas import FORMULAS, PerShard
from spread import DOMAINS, METHODS, sgd, shards, train
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.slow

STEPS = 10
LR = 0.1


def joined(samples: int, order: str) -> list[Problem]:
    """Ten batches; in the order ``sorted`` a rank holds some of the domains only."""
    problems = batches(STEPS, samples=samples, domains=DOMAINS)
    if order == "sorted":
        orders = [torch.argsort(problem.domain, stable=True) for problem in problems]
        return [Problem(p.x[i], p.y[i], p.domain[i]) for p, i in zip(problems, orders, strict=True)]
    return problems


def on_ranks(rank: int, names: list[str], sizes: tuple[int, ...], order: str, options: Any) -> dict[str, Tensor]:
    result = {}
    for name in names:
        model = network()
        ddp = DistributedDataParallel(model)
        optimizer = METHODS[name](sgd(model, LR), ddp, **options)
        train(optimizer, ddp, [shards(problem, sizes)[rank] for problem in joined(sum(sizes), order)])
        result[name] = weights(model)
    return result


def on_one(name: str, problems: list[Problem], **options: Any) -> Tensor:
    model = network()
    train(METHODS[name](sgd(model, LR), model, **options), model, problems)
    assert (weights(model) - weights(network())).norm() > 0.1  # the ten steps went somewhere
    return weights(model)


def by_formulas(name: str, problems: list[Problem], sizes: tuple[int, ...]) -> Tensor:
    oracle = PerShard(FORMULAS[name], LR, weights(network()))
    for problem in problems:
        oracle.step(shards(problem, sizes))
    return oracle.w


def differences(found: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> dict[str, float]:
    """The methods that differ, with the largest difference on any rank."""
    worst = {name: max(float((rank[name] - w).abs().max()) for rank in found) for name, w in expected.items()}
    return {name: difference for name, difference in worst.items() if not difference < 1e-10}


@pytest.mark.parametrize(("sizes", "order"), [((5, 11), "sorted"), ((5, 7, 9), "mixed")], ids=str)
def test_one_climb_is_that_of_one_process_on_the_joined_batch(sizes, order, tmp_path: Path) -> None:
    found = launch(on_ranks, len(sizes), tmp_path, list(METHODS), sizes, order, {"global_ascent": True})
    problems = joined(sum(sizes), order)
    assert differences(found, {name: on_one(name, problems) for name in METHODS}) == {}


def test_own_climbs_agree_with_the_formulas(tmp_path: Path) -> None:
    sizes = (5, 11)
    found = launch(on_ranks, 2, tmp_path, list(FORMULAS), sizes, "sorted", {"global_ascent": False})
    problems = joined(16, "sorted")
    expected = {name: by_formulas(name, problems, sizes) for name in FORMULAS}
    assert differences(found, expected) == {}
    # They are not the climbs of the joined batch.
    assert all((expected[name] - on_one(name, problems)).norm() > 1e-6 for name in FORMULAS)


def test_without_being_asked_ranks_climb_on_their_own_but_remember_the_same(tmp_path: Path) -> None:
    names, sizes = ["sam", "disam+sagm", "friendly", "vasso"], (5, 11)
    found = launch(on_ranks, 2, tmp_path, names, sizes, "mixed", {})
    problems = joined(16, "mixed")
    own = {name: by_formulas(name, problems, sizes) for name in names[:2]}
    assert differences(found, {**own, **{name: on_one(name, problems) for name in names[2:]}}) == {}


BARE = ["sam", "gsam", "sagm", "fisher"]


def bare(rank: int, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """A loop that knows nothing of steppe: its first gradient is averaged over the ranks."""
    result = {}
    for name in BARE:
        model = network()
        ddp = DistributedDataParallel(model)
        for options in ({}, {"global_ascent": False}):
            own = METHODS[name](sgd(model, LR), ddp, **options)
            losses_of(ddp, shards(joined(sum(sizes), "mixed")[0], sizes)[rank]).mean().backward()
            with pytest.raises(RuntimeError, match=r"DDP has averaged.* pass global_ascent=True"), own.perturbed():
                pass
        optimizer = METHODS[name](sgd(model, LR), ddp, global_ascent=True)
        mine = [shards(problem, sizes)[rank] for problem in joined(sum(sizes), "mixed")]
        train_any_way(optimizer, ddp, mine, "bare")
        result[name] = weights(model)
    return result


def test_a_bare_second_pass_is_that_of_the_joined_batch_or_refused(tmp_path: Path) -> None:
    found = launch(bare, 2, tmp_path, (5, 11))
    problems = joined(16, "mixed")
    assert differences(found, {name: on_one(name, problems) for name in BARE}) == {}


PARTED = [name for name in FORMULAS if name not in ("tram", "friendly", "vasso")]
"""Methods that remember nothing of a climb, which several a step would disturb."""


def test_m_parts_on_one_process_are_m_ranks(tmp_path: Path) -> None:
    problems, sizes = joined(16, "mixed"), (6, 5, 5)
    found = launch(on_ranks, 3, tmp_path, PARTED, sizes, "mixed", {"global_ascent": False})
    assert differences(found, {name: on_one(name, problems, m=3) for name in PARTED}) == {}
    assert differences(found, {name: by_formulas(name, problems, sizes) for name in PARTED}) == {}


def test_m_parts_on_every_rank_weigh_what_they_are(tmp_path: Path) -> None:
    """Shards of 5 and 11 in two parts each are climbs of 3, 2, 6 and 5 samples; every rank weighs the sums alike."""
    problems = joined(16, "mixed")
    found = launch(on_ranks, 2, tmp_path, PARTED, (5, 11), "mixed", {"m": 2})
    assert differences(found, {name: by_formulas(name, problems, (3, 2, 6, 5)) for name in PARTED}) == {}
    assert all(torch.equal(found[0][name], found[1][name]) for name in PARTED)
