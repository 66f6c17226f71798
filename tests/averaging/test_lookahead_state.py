"""What is saved: exact resume in mid-round, states of other optimizers, states that are refused, copies."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import Classifier, same, weights
from lookahead_loops import closure_of, train
from torch import Tensor, nn

import steppe

INNER: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02, amsgrad=True),
    "friendly": lambda model: steppe.FriendlySAM(torch.optim.AdamW(model.parameters(), lr=0.02), model=model),
    "disam+tram+looksam": lambda model: steppe.DISAM(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        radius=steppe.TrustRegion(model, "ema", decay=0.5),
        descent=steppe.Reuse(2),
    ),
    "tram": lambda model: steppe.TRAM(torch.optim.SGD(model.parameters(), lr=0.1), model),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean": {"fast": "mean", "state": "reset"},
    "anchor": {"anchor": 0.3, "anchor_reduction": "sum", "state": "pullback"},
    "both": {"fast": "mean", "anchor": 10.0, "state": "pullback"},
}
KINDS = [(inner, variant) for inner in INNER for variant in VARIANTS]
STEPS = 8
K = 3


def new(inner: str, variant: str, seed: int = 0) -> tuple[Classifier, steppe.Lookahead]:
    model = Classifier(dropout=0.2, seed=seed)
    return model, steppe.Lookahead(INNER[inner](model), K, 0.4, model=model, **VARIANTS[variant])


class Training:
    """What a checkpoint has to hold: model, optimizer, random state."""

    def __init__(self, kind: tuple[str, str], seed: int) -> None:
        self.model, self.optimizer = new(*kind, seed=seed)
        torch.manual_seed(seed)
        self.number = 0

    def step(self) -> None:
        self.optimizer.step(closure_of(self.optimizer, self.model, self.number))
        self.number += 1

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "number": self.number,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.number = state["number"]


# --- resuming ---


def continue_all(directory: Path) -> None:
    """What the new process does: goes on from every checkpoint, in fresh objects that were initialised otherwise."""
    torch.set_num_threads(1)
    ends: dict[str, dict[Any, Any]] = {}
    for path in sorted(directory.glob("after-*.pt")):
        ends[path.stem] = {}
        for kind, state in torch.load(path, weights_only=True).items():
            training = Training(kind, seed=1)
            training.load(state)
            while training.number < STEPS:
                training.step()
            ends[path.stem][kind] = training.state()
    torch.save(ends, directory / "ends.pt")


def test_resuming_after_any_step_in_a_new_process_is_bit_identical(tmp_path: Path) -> None:
    stops: dict[str, dict[Any, Any]] = {f"after-{k}": {} for k in range(STEPS)}
    undisturbed: dict[Any, Any] = {}
    for kind in KINDS:
        training = Training(kind, seed=0)
        for k in range(STEPS):
            stops[f"after-{k}"][kind] = copy.deepcopy(training.state())
            training.step()
        undisturbed[kind] = training.state()
    for name, states in stops.items():
        torch.save(states, tmp_path / f"{name}.pt")
    program = (
        "from pathlib import Path; from test_lookahead_state import continue_all; "
        f"continue_all(Path({str(tmp_path)!r}))"
    )
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "core")])
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": paths})
    ends = torch.load(tmp_path / "ends.pt", weights_only=True)
    different = [
        (stop, kind, key)
        for stop, resumed in ends.items()
        for kind, expected in undisturbed.items()
        for key in expected
        if not same(resumed[kind][key], expected[key])
    ]
    assert not different
    assert len(ends) == STEPS
    assert all(len(resumed) == len(undisturbed) == len(KINDS) for resumed in ends.values())


def train_and_save(path: Path, kind: tuple[str, str], steps: int) -> None:
    """Goes on from the last checkpoint, and saves after every step."""
    torch.set_num_threads(1)
    training = Training(kind, seed=0)
    if path.exists():
        training.load(torch.load(path, weights_only=True))
    while training.number < steps:
        training.step()
        torch.save(training.state(), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)


@pytest.mark.slow
def test_killed_in_mid_round_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """A real process, killed without warning after its fifth step or a little later."""
    steps, kind = 400, ("friendly", "both")
    context = multiprocessing.get_context("forkserver")
    expected = Training(kind, seed=0)
    while expected.number < steps:
        expected.step()
    path = tmp_path / "state.pt"
    child = context.Process(target=train_and_save, args=(path, kind, steps))
    child.start()
    while not path.exists():
        time.sleep(0.001)
    while torch.load(path, weights_only=True)["number"] < 5:
        time.sleep(0.001)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    stopped = torch.load(path, weights_only=True)
    assert 5 <= stopped["number"] < steps
    child = context.Process(target=train_and_save, args=(path, kind, steps))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert same(torch.load(path, weights_only=True), expected.state())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_state_is_complete_before_the_first_step_and_of_plain_containers(kind: tuple[str, str]) -> None:
    """As a distributed checkpoint needs, which loads in place, and initialises the state of the inner optimizer."""
    model, fresh = new(*kind)
    for group in fresh.param_groups:
        group["lr"] = 0.0
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    fresh.step()
    model, used = new(*kind)
    train(used, model, range(5))

    def shapes(state: Any) -> Any:
        if isinstance(state, dict):
            return {key: shapes(value) for key, value in state.items()}
        return (state.shape, state.dtype) if isinstance(state, Tensor) else type(state)

    assert shapes(fresh.extra_state()) == shapes(used.extra_state())
    torch.save(used.state_dict(), file := io.BytesIO())
    file.seek(0)
    assert same(torch.load(file, weights_only=True), used.state_dict())


def test_saving_changes_nothing() -> None:
    finals = []
    for saves in (False, True):
        training = Training(("friendly", "both"), seed=0)
        while training.number < STEPS:
            if saves:
                training.optimizer.state_dict()
            training.step()
        finals.append(training.state())
    assert same(*finals)


# --- states of others ---


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_state_loads_into_a_bare_base_optimizer_and_back(kind: tuple[str, str]) -> None:
    model, optimizer = new(*kind)
    train(optimizer, model, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    assert set(saved) == {"state", "param_groups", "steppe"}

    def innermost(outer: steppe.Lookahead) -> torch.optim.Optimizer:
        return outer.base.base if isinstance(outer.base, steppe.SharpnessAware) else outer.base

    def plain(base: torch.optim.Optimizer, trained: nn.Module) -> Tensor:
        torch.manual_seed(0)
        train(base, trained, range(2))
        return weights(trained)

    bare_model = copy.deepcopy(model)
    bare = innermost(steppe.Lookahead(INNER[kind[0]](bare_model)))
    bare.load_state_dict(saved)
    assert torch.equal(plain(bare, bare_model), plain(innermost(optimizer), model))
    assert same(bare.state_dict()["state"], innermost(optimizer).state_dict()["state"])

    optimizer.load_state_dict(copy.deepcopy(bare.state_dict()))  # the round begins anew
    assert (optimizer.rounds, optimizer.round_step) == (0, 0)
    before = weights(model)
    train(optimizer, model, range(1))
    with optimizer.slow_weights():
        assert torch.equal(weights(model), before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("inner", ["friendly", "disam+tram+looksam", "tram"])
def test_the_state_of_the_inner_optimizer_loads_and_ours_into_it(inner: str, variant: str) -> None:
    """With all that the inner one remembers."""
    model, optimizer = new(inner, variant)
    train(optimizer, model, range(5))
    taker = INNER[inner](Classifier())
    taker.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(taker.state_dict(), optimizer.base.state_dict())

    optimizer.load_state_dict(copy.deepcopy(taker.state_dict()))
    assert same(optimizer.base.state_dict(), taker.state_dict())
    assert (optimizer.rounds, optimizer.round_step) == (0, 0)
    before = weights(model)
    train(optimizer, model, range(1))
    with optimizer.slow_weights():
        assert torch.equal(weights(model), before)


def test_a_bare_state_begins_the_slow_state_anew_too() -> None:
    model, optimizer = new("sgd", "anchor")
    train(optimizer, model, range(4))
    assert optimizer.extra_state()["lookahead"]["inner"]["momentum_buffer"]["first.weight"].any()
    optimizer.load_state_dict(copy.deepcopy(optimizer.base.state_dict()))
    assert not optimizer.extra_state()["lookahead"]["inner"]["momentum_buffer"]["first.weight"].any()


def test_the_state_of_another_variant() -> None:
    """What is there is taken over; without the mean of half a round there is no going on."""
    _, plain = trained("sgd", "plain", 6)
    _, mean = trained("sgd", "mean", 5)
    _, taker = trained("sgd", "plain", 0)
    taker.load_state_dict(copy.deepcopy(mean.state_dict()))
    assert (taker.rounds, taker.round_step) == (1, 2)
    for steps in (6, 7):
        _, plain = trained("sgd", "plain", steps)
        _, taker = trained("sgd", "both", 4)
        before = copy.deepcopy(taker.state_dict())
        if steps == 6:  # the end of a round
            taker.load_state_dict(copy.deepcopy(plain.state_dict()))
            assert taker.rounds == 2
        else:
            with pytest.raises(ValueError, match=r"1 steps into a round.*without a mean.*fast='last'"):
                taker.load_state_dict(copy.deepcopy(plain.state_dict()))
            assert same(taker.state_dict(), before)


def trained(inner: str, variant: str, steps: int) -> tuple[nn.Module, steppe.Lookahead]:
    model, optimizer = new(inner, variant)
    train(optimizer, model, range(steps))
    return model, optimizer


def test_a_shorter_round_ends_at_once() -> None:
    model, optimizer = trained("sgd", "mean", 2)
    shorter = steppe.Lookahead(INNER["sgd"](model), 2, 0.4, "mean", model=model)
    shorter.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(shorter, model, range(1))
    assert (shorter.rounds, shorter.round_step) == (1, 0)


# --- states that are refused ---


class Renamed(Classifier):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.third = self.second
        del self.second

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.norm(self.first(x)))


class Wider(Classifier):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first = nn.Linear(7, 16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, x[:, :1]], 1))


@pytest.mark.parametrize("inner", ["sgd", "friendly"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Renamed, "nothing for the parameter 'third.weight'.*another model"),
        (Wider, r"'first.weight'.*\(16, 6\).*\(16, 7\)"),
    ],
)
def test_a_state_of_another_model_is_refused_and_changes_nothing(inner, variant, other, message) -> None:
    _, giver = trained(inner, variant, 5)
    model = other()
    optimizer = steppe.Lookahead(INNER[inner](model), K, 0.4, model=model, **VARIANTS[variant])
    train(optimizer, model, range(4))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(giver.state_dict())
    assert same(optimizer.state_dict(), before)
    train(optimizer, model, range(1))


def damaged(state: dict[str, Any], how: str) -> dict[str, Any]:
    extra = {**state["steppe"], "lookahead": copy.deepcopy(state["steppe"]["lookahead"])}
    if how == "newer":
        extra["version"] = 99
    elif how == "slow state":
        extra["lookahead"]["inner"]["exp_avg"]["first.bias"] = torch.ones(3)
    elif how == "mean":
        extra["lookahead"]["weights"]["mean"]["first.bias"] = torch.ones(3)
    elif how == "inner":
        extra["memory"] = {"geometry": {"gradient": {}}}
    else:
        groups = state["param_groups"] * 2 if how == "groups" else [{**state["param_groups"][0], "params": [0]}]
        return {**state, "param_groups": groups}
    return {**state, "steppe": extra}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("newer", "newer steppe"),
        ("slow state", "the slow exp_avg of the parameter 'first.bias' has the shape"),
        ("mean", r"'first.bias' has the shape \(3,\)"),
        ("inner", "has nothing for the parameter 'first.weight'"),
        ("groups", r"parameter groups of the sizes \[6, 6\], the optimizer of \[6\]"),
        ("sizes", r"of the sizes \[1\]"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(how: str, message: str) -> None:
    _, giver = trained("friendly", "both", 5)
    _, optimizer = trained("friendly", "both", 4)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(damaged(giver.state_dict(), how))
    assert same(optimizer.state_dict(), before)
    optimizer.load_state_dict(giver.state_dict())
    assert same(optimizer.state_dict(), giver.state_dict())


# --- copies ---


def pickled(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


def filed(pair: Any) -> Any:
    torch.save(pair, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, filed])
def test_a_copy_of_model_and_optimizer_goes_its_own_way(kind, copied: Callable[[Any], Any]) -> None:
    pair = trained(*kind, steps=4)
    torch.optim.lr_scheduler.StepLR(pair[1], 1)
    twin = copied(pair)
    for stepped, resting in ((pair, twin), (twin, pair)):
        resting_weights, resting_state = weights(resting[0]), copy.deepcopy(resting[1].state_dict())
        torch.manual_seed(7)
        train(stepped[1], stepped[0], range(4, 7))
        assert torch.equal(weights(resting[0]), resting_weights)
        assert same(resting[1].state_dict(), resting_state)
    assert same(pair[0].state_dict(), twin[0].state_dict())
    assert same(pair[1].state_dict()["steppe"], twin[1].state_dict()["steppe"])
