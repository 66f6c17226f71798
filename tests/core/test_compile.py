"""torch.compile of the model, of the loss and of the whole step: the same numbers, and an end to compiling."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from every_method import Classifier, batch, closure_of, train, weights
from problems import EVERY
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

method = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
STEPS, SETTLED = 7, 4
"""Steps in all, and those after which nothing new may be compiled (a whole cycle of re-use and a bit more)."""


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


class Run:
    """A model, its optimizer, and the frames that dynamo has seen after each step."""

    def __init__(self, make, wrap: Callable[[nn.Module], nn.Module] = lambda model: model, watch_bare: bool = False):
        self.model = Classifier().double()
        self.called = wrap(self.model)
        watched = self.model if watch_bare else self.called
        self.optimizer = make(torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9), watched)
        self.step: Callable[[int], object] = lambda number: self.optimizer.step(self.closure(number))
        self.frames: list[int] = []
        torch.manual_seed(0)

    def closure(self, number: int) -> Callable[[], Tensor]:
        return closure_of(self.optimizer, self.called, number)

    def go(self) -> Tensor:
        for number in range(STEPS):
            self.step(number)
            self.frames.append(counters["frames"]["total"])
        return weights(self.model)

    def check(self, reference: Tensor) -> None:
        torch.testing.assert_close(self.go(), reference, atol=1e-12, rtol=0)
        assert self.frames[0] > 0
        assert self.frames[SETTLED:] == [self.frames[SETTLED]] * (STEPS - SETTLED)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@method
def test_a_compiled_model(make) -> None:
    reference = Run(make).go()
    Run(make, compiled).check(reference)


@pytest.mark.parametrize("name", [name for name in EVERY if "tram" in name or name == "everything"])
@pytest.mark.parametrize("way", ["the bare model is watched", "compiled in place"])
def test_a_compiled_model_that_is_watched(name, way) -> None:
    reference = Run(EVERY[name]).go()
    run = Run(EVERY[name], in_place) if "place" in way else Run(EVERY[name], compiled, watch_bare=True)
    run.check(reference)


@method
def test_a_compiled_loss(make) -> None:
    """Forward, objective and backward in one compiled function."""
    reference, run = Run(make).go(), Run(make)

    @torch.compile(backend="eager")
    def backward(x: Tensor, y: Tensor, domain: Tensor) -> Tensor:
        loss = run.optimizer.objective(cross_entropy(run.model(x), y, reduction="none"), domain)
        loss.backward()
        return loss

    def step(number: int) -> None:
        def closure() -> Tensor:
            run.optimizer.zero_grad()
            x, y, domain = batch(number, torch.float64)
            return backward(*run.optimizer.ascent_batch(x, y, domain=domain))

        run.optimizer.step(closure)

    run.step = step
    run.check(reference)


@pytest.mark.parametrize(
    "name", ["sam", "gsam", "looksam-3", "disam+looksam", "tram", "tram-fisher", "m-sharpness", "exact", "everything"]
)
def test_a_compiled_step(name) -> None:
    """Everything in one compiled function: the engine's own part is left as it is, the closure is compiled.

    Those methods between them take every way through the engine.
    """
    make = EVERY[name]
    reference, run = Run(make).go(), Run(make)
    run.step = torch.compile(run.step, backend="eager")
    run.check(reference)


@pytest.mark.parametrize("make", [EVERY["sam"], EVERY["sagm"]], ids=["sam", "sagm"])
def test_contexts_inside_a_compiled_function(make) -> None:
    reference, run = Run(make).go(), Run(make)

    @torch.compile(backend="eager")
    def step(number: int) -> None:
        with run.optimizer.climbing():
            run.closure(number)()
        with run.optimizer.perturbed():
            run.closure(number)()
        run.optimizer.step()

    run.step = step
    run.check(reference)


def test_a_model_that_was_compiled_and_called_before_it_is_watched() -> None:
    """What was compiled without hooks has none; those that are put on later are seen all the same."""
    for watch_bare in (False, True):
        radii = []
        for compiles in (False, True):
            model = Classifier().double()
            called = compiled(model) if compiles else model
            called(batch(0, torch.float64)[0])
            model.norm.reset_running_stats()
            optimizer = EVERY["tram-initial"](torch.optim.SGD(model.parameters(), lr=0.1), model)
            optimizer.attach(model if watch_bare else called)
            radii.append(train(optimizer, called, range(4)))
        assert radii[1] == pytest.approx(radii[0], abs=1e-12)
        assert radii[0][0] == 0 < radii[0][-1]


@pytest.mark.parametrize("name", ["tram-initial", "tram-fisher"])
def test_a_compiled_sequential_calls_no_hooks_and_that_is_said(name) -> None:
    """Of a module of torch's own the hooks are compiled with it: those that come later are not called."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    called = compiled(model)
    called(batch(0, torch.float64)[0])
    optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1), model)
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"saw no call of its model.*optimizer\.attach\(model\)"):
        optimizer.step(closure_of(optimizer, called, 0))
    assert torch.equal(weights(model), before)
    optimizer.attach(called)  # as the message says
    optimizer.step(closure_of(optimizer, called, 0))
    assert not torch.equal(weights(model), before)


def test_trust_in_the_closure_where_there_are_no_hooks() -> None:
    runs = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        called = compiled(model) if compiles else model
        optimizer = EVERY["tram-initial"](torch.optim.SGD(model.parameters(), lr=0.1), model)

        def closure(optimizer=optimizer, called=called) -> Tensor:
            optimizer.zero_grad()
            x, y, _ = batch(0, torch.float64)
            logits = called(x)
            optimizer.trust(logits, x)
            loss = optimizer.objective(cross_entropy(logits, y, reduction="none"))
            loss.backward()
            return loss

        radii = []
        for _ in range(4):
            optimizer.step(closure)
            radii.append(float(optimizer.diagnostics["radius"]))
        runs.append((radii, weights(model)))
    assert runs[1][0] == pytest.approx(runs[0][0], abs=1e-12)
    assert runs[0][0][0] == 0 < runs[0][0][-1]
    torch.testing.assert_close(runs[1][1], runs[0][1], atol=1e-12, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("what", ["model", "step"])
@pytest.mark.parametrize("name", ["sam", "gsam", "disam+sagm", "tram", "tram-fisher", "looksam-3"])
def test_with_generated_code(name, what) -> None:
    reference, run = Run(EVERY[name]).go(), Run(EVERY[name], torch.compile if what == "model" else lambda model: model)
    if what == "step":
        run.step = torch.compile(run.step)
    torch.testing.assert_close(run.go(), reference, atol=1e-9, rtol=0)
    assert run.frames[0] > 0
    assert counters["aot_autograd"]["total"] > 0
