"""Exact resume in new processes: from rank 0's file under DDP, from distributed checkpoints under FSDP2."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from problems import batches, network, weights
from ranks import launch
from sharded import Rooted, layers, whole_weights
from spread import BASES, DOMAINS, METHODS, Make, shards, train
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import steppe

pytestmark = pytest.mark.slow

ALL: dict[str, Make] = {
    **METHODS,
    "tram, chance": lambda base, model, **options: steppe.TRAM(base, model, "noise", **options),
    "tram-fisher, chance": lambda base, model, **options: steppe.TRAMFisher(base, model, **options),
}
STEPS = 5
SIZES = (9, 15)


def base_of(number: int, name: str, model: nn.Module) -> torch.optim.Optimizer:
    """Every base optimizer in turn. One has no state at all, which torch takes for a state that is missing yet."""
    return BASES["sgd" if name in ("tram", "tram, ema") else list(BASES)[number % len(BASES)]](model)


def go_on(optimizer: Any, model: nn.Module, rank: int, sizes: tuple[int, ...], first: int, last: int) -> None:
    """The steps ``first`` … ``last`` − 1. The random state belongs to the loop."""
    for step, problem in list(enumerate(batches(STEPS, samples=sum(sizes), domains=DOMAINS)))[first:last]:
        torch.manual_seed(100 * step + rank)
        train(optimizer, model, [shards(problem, sizes)[rank]])


# --- DistributedDataParallel ---


def replica(number: int, name: str, seed: int, options: Any) -> tuple[nn.Module, nn.Module, steppe.SharpnessAware]:
    model = network(seed, normalise=True)
    ddp = DistributedDataParallel(model)
    return model, ddp, ALL[name](base_of(number, name, model), ddp, **options)


def undisturbed(rank: int, folder: Path, names: list[str], options: Any, every_rank: bool) -> dict[str, Tensor]:
    saved: dict[Any, Any] = {}
    result = {}
    for number, name in enumerate(names):
        model, ddp, optimizer = replica(number, name, 0, options)
        for step in range(STEPS):
            saved[name, step] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            go_on(optimizer, ddp, rank, SIZES, step, step + 1)
        result[name] = (weights(model), model.state_dict())
    if every_rank or rank == 0:
        torch.save(saved, folder / f"saved by {rank if every_rank else 0}")
    return result


def resumed(rank: int, folder: Path, names: list[str], options: Any, every_rank: bool) -> dict[Any, Any]:
    saved = torch.load(folder / f"saved by {rank if every_rank else 0}", weights_only=True)
    result = {}
    for number, name in enumerate(names):
        for step in range(STEPS):
            model, ddp, optimizer = replica(number, name, 5, options)
            of_model, of_optimizer = saved[name, step]
            model.load_state_dict(of_model)
            optimizer.load_state_dict(of_optimizer)
            go_on(optimizer, ddp, rank, SIZES, step, STEPS)
            result[name, step] = (weights(model), model.state_dict())
    return result


@pytest.mark.parametrize(
    ("names", "options", "every_rank"),
    [
        (list(ALL), {}, False),
        (["friendly", "vasso"], {"global_ascent": False}, True),
        (["asam", "disam+gsam", "look"], {"global_ascent": True}, False),
    ],
    ids=["from the file of rank 0", "from a file of every rank", "one climb"],
)
def test_ddp_resumes_after_any_step(names, options, every_rank, tmp_path: Path) -> None:
    before = launch(undisturbed, 2, tmp_path / "before", tmp_path, names, options, every_rank)
    after = launch(resumed, 2, tmp_path / "after", tmp_path, names, options, every_rank)
    for rank in (0, 1):
        differ = [case for case, (w, _) in after[rank].items() if not torch.equal(w, before[rank][case[0]][0])]
        assert differ == []
    # Running statistics are rank 0's, which the others get with the next call.
    for (name, _), (_, state) in after[0].items():
        assert all(torch.equal(value, before[0][name][1][key]) for key, value in state.items()), name


# --- FSDP2 ---


def divided(number: int, name: str, shard: bool) -> tuple[nn.Module, steppe.SharpnessAware]:
    model = Rooted()
    if shard:
        layers(model)
    return model, METHODS[name](base_of(number, name, model), model)


def save(folder: Path, model: nn.Module, optimizer: steppe.SharpnessAware, way: str) -> None:
    if way == "by name":  # torch's own, which knows nothing of what is not the base optimizer's
        of_model, of_optimizer = get_state_dict(model, optimizer)
        state = {"model": of_model, "optimizer": of_optimizer, "steppe": optimizer.extra_state()}
    else:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save(state, checkpoint_id=folder)


def load(folder: Path, model: nn.Module, optimizer: steppe.SharpnessAware, way: str) -> None:
    if way == "by name":
        of_model, of_optimizer = get_state_dict(model, optimizer)
        state = {"model": of_model, "optimizer": of_optimizer, "steppe": optimizer.extra_state()}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        optimizer.load_extra_state(state["steppe"])
    else:
        # What is loaded is what is there: the base optimizer's state must be, which a step at rate 0 sees to.
        initialise(model, optimizer)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.load(state, checkpoint_id=folder)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])


def initialise(model: nn.Module, optimizer: steppe.SharpnessAware) -> None:
    rates = [group["lr"] for group in optimizer.param_groups]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


REMEMBERING = ["tram", "tram, initial", "tram, ema", "friendly", "vasso", "look", "disam+tram+look+sagm"]
"""The methods that have something to lose."""

WAYS = ("by name", "by number")
MOMENTS = {name: [(step, WAYS[(step + number) % 2]) for step in range(1, STEPS)] for number, name in enumerate(METHODS)}
"""After which steps, and how, each is saved: not before the first, as torch's own step at rate 0 counts for AdamW."""


def saving(rank: int, folder: Path) -> dict[str, Tensor]:
    warnings.filterwarnings("error", message=".*plain step.*")
    result = {}
    for number, name in enumerate(METHODS):
        model, optimizer = divided(number, name, shard=True)
        for step in range(STEPS):
            for way in WAYS:
                if (step, way) in MOMENTS[name]:
                    save(folder / name / f"{step} {way}", model, optimizer, way)
            go_on(optimizer, model, rank, SIZES, step, step + 1)
        result[name] = whole_weights(model)
    return result


def undisturbed_shards(rank: int) -> dict[str, Tensor]:
    result = {}
    for number, name in enumerate(METHODS):
        model, optimizer = divided(number, name, shard=True)
        go_on(optimizer, model, rank, SIZES, 0, STEPS)
        result[name] = whole_weights(model)
    return result


def loading(rank: int, folder: Path, sizes: tuple[int, ...], moments: Any, shard: bool) -> dict[Any, Tensor]:
    warnings.filterwarnings("error", message=".*plain step.*")
    result = {}
    for number, name in enumerate(METHODS):
        for step, way in moments.get(name, []):
            model, optimizer = divided(number, name, shard)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.5)  # another start
            load(folder / name / f"{step} {way}", model, optimizer, way)
            go_on(optimizer, model, rank, sizes, step, STEPS)
            result[name, step, way] = whole_weights(model)
    return result


def test_fsdp2_resumes_from_distributed_checkpoints(tmp_path: Path) -> None:
    expected = launch(undisturbed_shards, 2, tmp_path / "undisturbed")[0]
    saved = launch(saving, 2, tmp_path / "before", tmp_path / "saved")[0]
    assert [name for name in METHODS if not torch.equal(saved[name], expected[name])] == []  # saving disturbs nothing
    for found in launch(loading, 2, tmp_path / "after", tmp_path / "saved", SIZES, MOMENTS, True):
        assert [case for case, w in found.items() if not torch.equal(w, expected[case[0]])] == []
    # And in another number of processes: the same weights, but for the order of the sums.
    once = {name: [moment for moment in MOMENTS[name] if moment[0] == 3] for name in REMEMBERING}
    for world, sizes, shard in ((1, (24,), False), (4, (5, 8, 4, 7), True)):
        for found in launch(loading, world, tmp_path / f"{world}", tmp_path / "saved", sizes, once, shard):
            worst = {case: float((w - expected[case[0]]).abs().max()) for case, w in found.items()}
            assert {case: difference for case, difference in worst.items() if not difference < 1e-10} == {}, world
