"""Averages of replicas and of shards: those of one process, to the bit; BatchNorm over the batches of all ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from problems import network
from ranks import launch
from sharded import LAYOUTS, Rooted, layers, whole, whole_weights
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from steppe.averaging import EMA, SWA, SWAD, Average, reestimate_batch_norm
from steppe.errors import SteppeError
from steppe.shards import local, shard_of

pytestmark = pytest.mark.slow

MAKERS: dict[str, Callable[[nn.Module], Average]] = {
    "swad": lambda model: SWAD(model, 2, 4),
    "swad, dead": lambda model: SWAD(model, 2, 2, 0.0),
    "swa": lambda model: SWA(model, 3),
    "ema": lambda model: EMA(model, 0.8),
}
LOSSES = [0.9, 0.5, 0.6, 0.55, 0.6, 0.7, 0.65]
STEPS = 2 * len(LOSSES)


class Half(Rooted):
    """In half precision, whose means are kept in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.bfloat16()


@torch.no_grad()
def evaluated(model: nn.Module) -> Tensor:
    """What it says; FSDP2 leaves the root gathered."""
    return model(torch.linspace(-1, 1, 30).view(5, 6).to(next(model.parameters()).dtype))


@torch.no_grad()
def put(model: nn.Module, step: int) -> None:
    """The weights after step t, the same whole ones however they are divided."""
    model.state_dict()  # FSDP2 gives back what it had gathered
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        local(p).copy_(shard_of(torch.randn(p.shape, generator=generator, dtype=p.dtype), p))


def run(average: Average, model: nn.Module, first: int = 0, last: int = STEPS) -> None:
    for step in range(first, last):
        put(model, step)
        evaluated(model)
        average.update()
        if step % 2:
            average.segment(LOSSES[step // 2])
        evaluated(model)


def result(average: Average, model: nn.Module) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """The averaged weights, what the model says with them, and whose they are."""
    found = average.finish()
    model.load_state_dict(found)
    output = evaluated(model)
    model.state_dict()
    return whole_weights(model), output, (average.start, average.end)


@cache
def on_one(kind: type[nn.Module], name: str) -> tuple[Tensor, Tensor, tuple[int, int]]:
    model = kind()
    average = MAKERS[name](model)
    run(average, model)
    return result(average, model)


def differing(found: list[dict[Any, Any]]) -> list[Any]:
    wrong = []
    for rank in found:
        for case, (averaged, output, span) in rank.items():
            expected = on_one(*case[:2])
            close = torch.allclose(output, expected[1], rtol=1e-12, atol=1e-12)
            if not torch.equal(averaged, expected[0]) or not close or span != expected[2]:
                wrong.append(case)
    return wrong


def on_two(rank: int) -> dict[Any, Any]:
    found = {}
    for name, make in MAKERS.items():
        ddp = DistributedDataParallel(Rooted())
        average = make(ddp)
        run(average, ddp)
        found[Rooted, name, "ddp"] = result(average, ddp)
        for layout, (kind, divide) in LAYOUTS.items():
            model = kind()
            average = make(model)
            divide(model)  # a library may do so after the average was made, and before the first step
            run(average, model)
            found[kind, name, layout] = result(average, model)
    return found


def on_four(rank: int) -> dict[Any, Any]:
    """Shards of which some are empty; and two groups that hold replicas of each other's shards."""
    found = {}
    for shape, dimensions in (((4,), ("shard",)), ((2, 2), ("replicate", "shard"))):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=dimensions)
        for name, make in MAKERS.items():
            model = Rooted()
            layers(model, mesh=mesh)
            average = make(model)
            run(average, model)
            found[Rooted, name, shape] = result(average, model)
    return found


@pytest.mark.parametrize(("task", "world"), [(on_two, 2), (on_four, 4)], ids=["two", "four"])
def test_averages_are_those_of_one_process(task, world, tmp_path: Path) -> None:
    found = launch(task, world, tmp_path)
    assert differing(found) == []
    assert len(found[0]) == len(MAKERS) * (4 if world == 2 else 2)
    assert on_one(Rooted, "swad")[2] == (3, STEPS)
    assert on_one(Rooted, "swad, dead")[2] == (5, 8)


# --- distributed checkpoints ---

STOPS = (0, 3, 7, 10)


def saving(rank: int, folder: Path) -> None:
    for name, make in MAKERS.items():
        model = Half()
        layers(model)
        average = make(model)
        for first, last in zip((0, *STOPS), STOPS, strict=False):
            run(average, model, first, last)
            dcp.save({"average": average.state_dict()}, checkpoint_id=folder / name / str(last))


def loading(rank: int, folder: Path) -> dict[Any, Any]:
    found = {}
    for name, make in MAKERS.items():
        for stop in STOPS:
            model = Half()
            layers(model)
            average = make(model)
            run(average, model, 0, 3)  # what it was before does not matter
            state = {"average": average.state_dict()}
            dcp.load(state, checkpoint_id=folder / name / str(stop))
            average = make(model)
            average.load_state_dict(state["average"])
            run(average, model, stop)
            found[Half, name, stop] = result(average, model)
    return found


def test_distributed_checkpoints_resume_at_any_step_and_on_more_ranks(tmp_path: Path) -> None:
    launch(saving, 2, tmp_path / "before", tmp_path / "saved")
    for world in (2, 3):
        found = launch(loading, world, tmp_path / f"{world}", tmp_path / "saved")
        assert differing(found) == []
        assert len(found[0]) == len(MAKERS) * len(STOPS)


# --- batch normalisation ---


def batches_of(rank: int, number: int) -> list[tuple[Tensor, str]]:
    generator = torch.Generator().manual_seed(rank)
    made = [torch.randn(4 + rank, 6, generator=generator, dtype=torch.float64) + rank for _ in range(number)]
    return [(x, "a label") for x in made]


def reestimated(rank: int, numbers: tuple[int, ...], wrap: str) -> tuple[int, dict[str, Tensor], Tensor]:
    model = network(normalise=True)
    wrapped: nn.Module = model
    if wrap == "fsdp":
        fully_shard(model)
    else:
        wrapped = DistributedDataParallel(model, static_graph=wrap == "static ddp")
    before = copy.deepcopy(dict(model.named_buffers()))
    with pytest.raises(SteppeError, match="no batches"):
        reestimate_batch_norm(wrapped, [])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    with torch.no_grad():
        wrapped(batches_of(rank, 1)[0][0])  # FSDP2 leaves all of the weights gathered
    used = reestimate_batch_norm(wrapped, batches_of(rank, numbers[rank]))
    weights = torch.cat([whole(p).reshape(-1) for p in model.parameters()])
    dist.barrier()
    return used, dict(model.named_buffers()), weights


@pytest.mark.parametrize(
    ("wrap", "numbers"),
    [("ddp", (3, 5)), ("static ddp", (2, 2)), ("ddp", (3, 0)), ("ddp", (1, 2, 3)), ("fsdp", (3, 3))],
)
def test_statistics_are_over_the_batches_of_all_ranks(wrap, numbers, tmp_path: Path) -> None:
    model = network(normalise=True)
    everything = [batch for rank, number in enumerate(numbers) for batch in batches_of(rank, number)]
    assert reestimate_batch_norm(model, everything) == sum(numbers)
    found = launch(reestimated, len(numbers), tmp_path, numbers, wrap)
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    for rank, (used, buffers, weights) in enumerate(found):
        assert used == numbers[rank]
        assert torch.equal(weights, expected)
        for name, buffer in model.named_buffers():
            assert torch.equal(buffers[name], found[0][1][name]), "the same bits on every rank"
            torch.testing.assert_close(buffers[name], buffer, rtol=1e-12, atol=1e-12)
