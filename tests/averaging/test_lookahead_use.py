"""Lookahead in the place of the inner optimizer: its names, accelerate, torch.compile, memory, accelerators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from every_method import Classifier, batch, same, weights
from lookahead_loops import closure_of, train
from problems import EVERY
from test_devices import OnTwo, Transfers
from test_devices import no_device as no_device
from test_memory import Live, large_model
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

import steppe

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean": {"fast": "mean"},
    "anchor": {"anchor": 0.5, "anchor_reduction": "sum"},
    "all": {"fast": "mean", "anchor": 0.5, "anchor_reduction": "sum", "state": "pullback"},
}

# --- names ---


def test_it_is_an_optimizer_with_all_that_the_inner_one_has() -> None:
    model = Classifier()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    middle = steppe.TRAM(base, model, descent=steppe.GradientMatching())
    optimizer = steppe.Lookahead(middle)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.base is middle
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults
    assert optimizer.model is model
    for name in dir(middle):
        if not name.startswith("_"):
            assert hasattr(optimizer, name), name
    assert optimizer.parts is middle.parts
    assert optimizer.trust == middle.trust
    closure = closure_of(optimizer, model, 0)
    expected = cross_entropy(Classifier()(batch(0)[0]), batch(0)[1])
    torch.testing.assert_close(optimizer.step(closure), expected.detach())
    assert optimizer.diagnostics == middle.diagnostics
    assert optimizer.climbs
    assert optimizer.phase is None
    assert repr(optimizer).startswith("Lookahead(k=15, alpha=0.05, fast='last', state='carry',\n  optimizer=Sharpness")
    anchored = repr(steppe.Lookahead(base, 4, 0.5, "mean", 0.1, anchor_reduction="sum", state="reset"))
    assert anchored.startswith(
        "Lookahead(k=4, alpha=0.5, fast='mean', anchor=0.1, anchor_reduction='sum', state='reset',\n  optimizer=SGD"
    )


def test_attach_tells_both() -> None:
    model = Classifier()
    optimizer = steppe.Lookahead(steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1)))
    assert optimizer.model is None
    assert "0" in optimizer.extra_state()["lookahead"]["weights"]["slow"]
    optimizer.attach(model)
    assert optimizer.model is optimizer.base.model is model
    assert "first.weight" in optimizer.extra_state()["lookahead"]["weights"]["slow"]
    bare = steppe.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    bare.attach(model)
    assert bare.model is model


class ScheduleFree(torch.optim.SGD):
    """An optimizer with modes, which trainers call where there are any."""

    mode = ""

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


def test_modes_of_the_innermost_optimizer() -> None:
    base = ScheduleFree(Classifier().parameters(), lr=0.1)
    optimizer = steppe.Lookahead(steppe.SAM(base))
    optimizer.train()
    assert base.mode == "train"
    optimizer.eval()
    assert base.mode == "eval"
    assert not hasattr(steppe.Lookahead(torch.optim.SGD(Classifier().parameters())), "train")


# --- accelerate ---


@pytest.mark.filterwarnings("ignore:step.. had neither")
@pytest.mark.parametrize("inner", ["bare", "disam"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prepared_by_accelerate_and_accumulating(inner: str, variant: str) -> None:
    """Every second call of the prepared optimizer's step is one."""
    finals = []
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    for prepares in (False, True):
        model = Classifier()
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        within = steppe.DISAM(base, rho=0.0, model=model) if inner == "disam" else base
        optimizer = steppe.Lookahead(within, 2, 0.5, model=model, **VARIANTS[variant])
        called: Any = optimizer
        if prepares:
            model, called = accelerator.prepare(model, optimizer)
            optimizer.attach(model)
        for number in range(12):
            x, y, _ = batch(number)
            if prepares:
                with accelerator.accumulate(model):
                    accelerator.backward(cross_entropy(model(x), y))
                    called.step()
                    called.zero_grad()
            else:
                (cross_entropy(model(x), y) / 2).backward()
                if number % 2:
                    optimizer.step()
                    optimizer.zero_grad()
        assert (optimizer.rounds, optimizer.round_step) == (3, 0)
        finals.append((weights(model), optimizer.extra_state()))
    assert same(*finals)


# --- torch.compile ---


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("inner", ["bare", "gsam", "everything"])
@pytest.mark.parametrize("how", ["model", "closure", "without"])
def test_compiled(inner: str, how: str) -> None:
    """The model, or everything in one function: the closure is compiled, and compiling comes to an end."""
    finals, frames = [], []
    for compiles in (False, True):
        model = Classifier().double()
        called = torch.compile(model, backend="eager") if compiles and how == "model" else model
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        within = base if inner == "bare" else EVERY[inner](base, called)
        optimizer = steppe.Lookahead(within, 2, 0.5, **VARIANTS["all"])

        def step(number: int, optimizer: Any = optimizer, called: Any = called) -> None:
            train(optimizer, called, [number], "without" if how == "without" else "closure")

        step = torch.compile(step, backend="eager") if compiles and how != "model" else step
        torch.manual_seed(0)
        for number in range(9):
            step(number)
            frames.append(counters["frames"]["total"])
        finals.append(weights(model))
    torch.testing.assert_close(finals[1], finals[0], atol=1e-12, rtol=0)
    assert frames[9] > 0
    assert frames[14:] == [frames[14]] * 4


# --- memory ---


def peak(inner: str, variant: dict[str, Any] | None) -> float:
    """The largest number of copies of the weights in a round that is not the first."""
    model = large_model(width=768)
    with Live() as live:
        for p in model.parameters():
            live.note(p)
        size = live.now
        base: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        if inner == "sam":
            base = steppe.SAM(base, model=model)
        optimizer = base if variant is None else steppe.Lookahead(base, 3, **variant)
        x, y = torch.randn(4, 768), torch.zeros(4, dtype=torch.long)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
        live.peak = 0
        for _ in range(3):
            optimizer.step(closure)
    return live.peak / size


COPIES = [
    ("plain", {}, 1),
    ("mean", {"fast": "mean"}, 2),
    ("anchor", {"anchor": 1.0}, 2),
    ("both", {"fast": "mean", "anchor": 1.0}, 2),
    ("reset", {"state": "reset"}, 1),
    ("pullback", {"state": "pullback"}, 2),
]


@pytest.mark.parametrize("inner", ["bare", "sam"])
@pytest.mark.parametrize(("variant", "copies"), [each[1:] for each in COPIES], ids=[each[0] for each in COPIES])
def test_copies_of_the_weights_over_the_inner_optimizer(inner: str, variant: dict[str, Any], copies: int) -> None:
    """The pull has temporaries too, of a portion each."""
    assert peak(inner, variant) - peak(inner, None) == pytest.approx(copies, abs=0.1)


# --- accelerators, without one ---


def fake_steps(model: nn.Module, inner: str, variant: str) -> Transfers:
    base: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = steppe.Lookahead(steppe.SAM(base) if inner == "sam" else base, 2, **VARIANTS[variant])

    def closure() -> Tensor:
        optimizer.zero_grad()
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        return torch.zeros(())

    optimizer.step(closure)
    with Transfers() as transfers:
        for _ in range(5):
            optimizer.step(closure)
            with optimizer.slow_weights():
                pass
    assert optimizer.rounds == 3
    return transfers


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize("inner", ["bare", "sam"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", [Classifier, OnTwo])
def test_the_host_never_waits_for_the_device(network: Callable[[], nn.Module], inner: str, variant: str) -> None:
    """Tensors without values: waiting for one would raise. Of two devices only single numbers cross."""
    if network is Classifier:
        with torch.device("cuda"):
            model = network()
    else:
        model = network()
    crossing = fake_steps(model, inner, variant).seen
    if inner == "bare" or network is Classifier:
        assert crossing == []
    assert all(shape == () for _, _, shape, _ in crossing)
