"""Lookahead on many ranks: one process on the joined batch, the same bits on every replica, exact resume."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from problems import Problem, batches, losses_of, network, weights
from ranks import launch
from sharded import LAYOUTS, Rooted, layers, whole, whole_weights
from spread import DOMAINS, METHODS, adamw, closure_of, momentum, sgd, shards
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import steppe

pytestmark = pytest.mark.slow

STEPS = 8
SIZES = (12, 12)
"""Equal shards: a bare optimizer inside knows of none."""
K = 3

INNER: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "bare": lambda model, called, **options: momentum(model),
    "bare, without state": lambda model, called, **options: sgd(model, 0.3),
    "disam+gsam": lambda model, called, **options: METHODS["disam+gsam"](adamw(model), called, **options),
    "tram, ema": lambda model, called, **options: METHODS["tram, ema"](momentum(model), called, **options),
    "friendly": lambda model, called, **options: METHODS["friendly"](sgd(model, 0.3), called, **options),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"state": "reset"},
    "mean": {"fast": "mean"},
    "anchor": {"anchor": 3.0, "state": "pullback"},
    "both": {"fast": "mean", "anchor": 0.05, "anchor_reduction": "sum", "state": "pullback"},
}
CASES = [(inner, variant) for inner in INNER for variant in VARIANTS]
SOME = [case for number, case in enumerate(CASES) if number % 3 == 0]
"""Every inner optimizer and every variant."""


def make(case: tuple[str, str], model: nn.Module, called: nn.Module, **options: Any) -> steppe.Lookahead:
    inner, variant = case
    return steppe.Lookahead(INNER[inner](model, called, **options), K, 0.4, model=called, **VARIANTS[variant])


def closure_for(optimizer: steppe.Lookahead, model: nn.Module, problem: Problem) -> Callable[[], Tensor]:
    if isinstance(optimizer.base, steppe.SharpnessAware):
        return closure_of(optimizer, model, problem)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = losses_of(model, problem).mean()
        loss.backward()
        return loss

    return closure


def mine(rank: int, sizes: tuple[int, ...]) -> list[Problem]:
    return [shards(problem, sizes)[rank] for problem in batches(STEPS, samples=sum(sizes), domains=DOMAINS)]


def run(
    optimizer: steppe.Lookahead, model: nn.Module, problems: list[Problem], look: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Trains; where asked to, the slow weights and what the model says with them after each step."""
    seen = []
    for problem in problems:
        optimizer.step(closure_for(optimizer, model, problem))
        if look:
            with optimizer.slow_weights(), torch.no_grad():
                said = model(batches(1, samples=4, domains=DOMAINS)[0].x)
                seen.append((whole_weights(model), said))
    return seen


@cache
def on_one(kind: Callable[[], nn.Module], case: tuple[str, str], **options: Any) -> tuple[Tensor, Any]:
    model = kind()
    optimizer = make(case, model, model, **options)
    seen = run(optimizer, model, mine(0, (sum(SIZES),)), look=True)
    assert optimizer.rounds == STEPS // K
    return weights(model), seen


def distance(found: tuple[Tensor, Any], expected: tuple[Tensor, Any]) -> float:
    pairs = [(found[0], expected[0])]
    for one, other in zip(found[1], expected[1], strict=True):
        pairs += zip(one, other, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


# --- DistributedDataParallel ---


def replicas(rank: int, options: dict[str, Any]) -> dict[Any, Any]:
    result = {}
    for case in CASES:
        model = network()
        ddp = DistributedDataParallel(model)
        optimizer = make(case, model, ddp, **options)
        seen = run(optimizer, ddp, mine(rank, SIZES), look=True)
        result[case] = (weights(model), seen, optimizer.extra_state()["lookahead"])
    return result


@pytest.mark.parametrize("options", [{"global_ascent": True}, {}], ids=["one climb", "each its own climb"])
def test_replicas_have_the_same_bits_and_are_one_process(options: dict[str, Any], tmp_path: Path) -> None:
    first, second = launch(replicas, 2, tmp_path, options)
    assert [case for case in CASES if not same(first[case], second[case])] == []
    compared = [case for case in CASES if options or case[0].startswith("bare")]
    worst = {case: distance(first[case][:2], on_one(network, case, **options)) for case in compared}
    assert {case: difference for case, difference in worst.items() if not difference < 1e-10} == {}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def before_and_after(rank: int, folder: Path) -> dict[Any, Tensor]:
    """Stopped after any step, and continued in new objects from rank 0's file."""
    result = {}
    for case in SOME:
        model = network()
        ddp = DistributedDataParallel(model)
        optimizer = make(case, model, ddp)
        saved = []
        for problem in mine(rank, SIZES):
            saved.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
            run(optimizer, ddp, [problem])
        result[case, "undisturbed"] = weights(model)
        if rank == 0:
            torch.save(saved, folder / "saved")
        torch.distributed.barrier()
        for step, (of_model, of_optimizer) in enumerate(torch.load(folder / "saved", weights_only=True)):
            model = network(seed=5)
            ddp = DistributedDataParallel(model)
            optimizer = make(case, model, ddp)
            model.load_state_dict(of_model)
            optimizer.load_state_dict(of_optimizer)
            run(optimizer, ddp, mine(rank, SIZES)[step:])
            result[case, step] = weights(model)
        torch.distributed.barrier()
    return result


def test_ddp_resumes_after_any_step(tmp_path: Path) -> None:
    for found in launch(before_and_after, 2, tmp_path, tmp_path):
        assert [case for case in found if not torch.equal(found[case], found[case[0], "undisturbed"])] == []


def overflowing(rank: int) -> Any:
    """The gradient of one rank is not finite in the fifth step, which is then none of the round."""
    result = {}
    for inner in ("disam+gsam", "friendly"):
        model = network().float()
        ddp = DistributedDataParallel(model)
        optimizer = make((inner, "both"), model, ddp)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        counts = []
        for step, problem in enumerate(mine(rank, SIZES)):

            def closure(
                optimizer: Any = optimizer,
                ddp: Any = ddp,
                scaler: Any = scaler,
                problem: Any = problem,
                step: int = step,
            ) -> Tensor:
                optimizer.zero_grad()
                losses = losses_of(ddp, Problem(problem.x.float(), problem.y, problem.domain))
                loss = scaler.scale(optimizer.objective(losses, problem.domain))
                (loss * float("inf") if (rank, step) == (1, 4) else loss).backward()
                return loss

            optimizer.step(closure, scaler=scaler)
            scaler.update()
            counts.append((optimizer.rounds, optimizer.round_step))
        result[inner] = (weights(model), optimizer.extra_state()["lookahead"], counts)
    return result


def test_an_overflow_on_one_rank_is_no_step_on_any(tmp_path: Path) -> None:
    first, second = launch(overflowing, 2, tmp_path)
    assert same(first, second)
    for final, _, counts in first.values():
        assert counts == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 1), (1, 2), (2, 0), (2, 1)]
        assert final.isfinite().all()


# --- FSDP2 ---


def divided(rank: int) -> dict[Any, Any]:
    result = {}
    for layout, (kind, divide) in LAYOUTS.items():
        for case in SOME:
            model = kind()
            divide(model)
            optimizer = make(case, model, model)
            seen = run(optimizer, model, mine(rank, SIZES), look=True)
            result[layout, case] = (whole_weights(model), seen)
    # Nothing in there is more than this rank's shard, and a state dict knows of the whole.
    kept = optimizer._memory._kept
    assert all(t.numel() == p.to_local().numel() for name in kept for p, t in kept[name].items())
    slow = optimizer.extra_state()["lookahead"]["weights"]["slow"]
    assert {name: tuple(t.shape) for name, t in slow.items()} == {
        n: tuple(p.shape) for n, p in kind().named_parameters()
    }
    assert torch.equal(torch.cat([whole(t).reshape(-1) for t in slow.values()]), seen[-1][0])
    return result


def test_fsdp2_is_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    for found in launch(divided, 2, tmp_path):
        worst = {
            (layout, case): distance(one, on_one(LAYOUTS[layout][0], case)) for (layout, case), one in found.items()
        }
        assert {case: difference for case, difference in worst.items() if not difference < 1e-10} == {}


def changed(rank: int) -> dict[Any, Tensor]:
    """A library divides the model after the optimizer was made, and changes the parameters."""
    result = {}
    for case in (("bare", "both"), ("disam+gsam", "both")):
        model = Rooted()
        optimizer = make(case, model, model)
        layers(model)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        with pytest.raises(RuntimeError, match="sharded after"):
            run(optimizer, model, mine(rank, SIZES))
        optimizer.attach(model)
        run(optimizer, model, mine(rank, SIZES))
        result[case] = whole_weights(model)
        with pytest.raises(ValueError, match="must know the model"):
            steppe.Lookahead(momentum(model))
    return result


def test_parameters_that_are_divided_later(tmp_path: Path) -> None:
    for found in launch(changed, 2, tmp_path):
        for case, final in found.items():
            assert (final - on_one(Rooted, case)[0]).abs().max() < 1e-10, case


# --- distributed checkpoints ---


def build(case: tuple[str, str], shard: bool) -> tuple[nn.Module, steppe.Lookahead]:
    model = Rooted()
    if shard:
        layers(model)
    return model, make(case, model, model)


def initialise(model: nn.Module, optimizer: steppe.Lookahead) -> None:
    """What is loaded in place must be there: the inner optimizer's state, which a step at rate 0 sees to."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def gathered_state(model: nn.Module, optimizer: steppe.Lookahead, way: str) -> dict[str, Any]:
    if way == "by number":
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    of_model, of_optimizer = get_state_dict(model, optimizer)  # torch's own, which knows of the innermost alone
    return {"model": of_model, "optimizer": of_optimizer, "steppe": optimizer.extra_state()}


def load(folder: Path, model: nn.Module, optimizer: steppe.Lookahead, way: str) -> None:
    if way == "by number":
        initialise(model, optimizer)
    state = gathered_state(model, optimizer, way)
    dcp.load(state, checkpoint_id=folder)
    if way == "by number":
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    else:
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        optimizer.load_extra_state(state["steppe"])


def moments(case: tuple[str, str]) -> dict[int, str]:
    """After how many steps a checkpoint is written, and how. A state that was just reset is none to load in place."""
    end = 4 if VARIANTS[case[1]].get("state") == "reset" else K
    return {1: "by name", 2: "by number", end: "by name", 5: "by number"}


def saving(rank: int, folder: Path) -> dict[Any, Tensor]:
    warnings.filterwarnings("error", message=".*plain step.*")
    result = {}
    for number, case in enumerate(SOME):
        for saves in (False, True):
            model, optimizer = build(case, shard=True)
            for step, problem in enumerate(mine(rank, SIZES)):
                if saves and step in moments(case):
                    state = gathered_state(model, optimizer, moments(case)[step])
                    dcp.save(state, checkpoint_id=folder / f"{number} after {step}")
                run(optimizer, model, [problem])
            result[case, saves] = whole_weights(model)
    return result


def loading(rank: int, folder: Path, sizes: tuple[int, ...], shard: bool, cases: list[Any]) -> dict[Any, Tensor]:
    warnings.filterwarnings("error", message=".*plain step.*")
    result = {}
    for case in cases:
        for step, way in moments(case).items():
            model, optimizer = build(case, shard)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.5)  # another start
            load(folder / f"{SOME.index(case)} after {step}", model, optimizer, way)
            run(optimizer, model, mine(rank, sizes)[step:])
            result[case, step] = whole_weights(model)
    return result


def test_fsdp2_resumes_from_distributed_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    expected = launch(saving, 2, tmp_path / "before", folder)[0]
    # Saving disturbs nothing.
    assert [case for case in SOME if not torch.equal(expected[case, True], expected[case, False])] == []
    for found in launch(loading, 2, tmp_path / "after", folder, SIZES, True, SOME):
        assert [case for case, w in found.items() if not torch.equal(w, expected[case[0], True])] == []
    # And in another number of processes: the same weights, but for the order of the sums.
    few = SOME[:3]
    for world, sizes, shard in ((1, (24,), False), (4, (6, 6, 6, 6), True)):
        for found in launch(loading, world, tmp_path / f"{world}", folder, sizes, shard, few):
            worst = {case: float((w - expected[case[0], True]).abs().max()) for case, w in found.items()}
            assert {case: difference for case, difference in worst.items() if not difference < 1e-10} == {}, world
