"""An exception or an interrupt at any point of any pass: the weights are w, nothing is left behind, it goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from problems import EVERY, Problem, batches, losses_of, network, weights
from torch import Tensor, nn

import steppe

METHODS = {
    **EVERY,
    "exact disam+gsam": lambda base, model: steppe.DISAM(
        base, model=model, descent=steppe.SurrogateGap(), accumulate="exact", same_dropout=True
    ),
    "m = 2": lambda base, model: steppe.DISAM(base, model=model, m=2),
    "fraction": lambda base, model: steppe.SAGM(base, model=model, ascent_fraction=0.5),
    "everything, exact": lambda base, model: steppe.DISAM(
        base,
        geometry=steppe.Smoothed(steppe.NoisedFisher(model)),
        radius=steppe.TrustRegion(model, "initial"),
        descent=steppe.Reuse(2, descent=steppe.GradientMatching()),
        accumulate="exact",
    ),
}
PART_METHODS = ("watch", "direction", "coefficients", "length", "combine", "resume", "stepped")


class Planted(RuntimeError):
    pass


class Events:
    """Numbers the points that a step comes past, and raises at one of them.

    Notes BatchNorm's buffers after each forward pass, by the pass.
    """

    def __init__(self, optimizer: steppe.SharpnessAware, raise_at: int | None = None) -> None:
        self.optimizer, self.raise_at = optimizer, raise_at
        self.start = [b.clone() for b in optimizer.model.buffers()]
        self.passed: list[str] = []
        self.counted: dict[str, list[list[Tensor]]] = {}

    def __call__(self, name: str) -> None:
        phase = self.optimizer._stage.phase
        self.passed.append(f"{phase}: {name}")
        if name == "before backward":
            buffers = [b.clone() for b in self.optimizer.model.buffers()]
            self.counted.setdefault(phase, [self.start]).append(buffers)
        if len(self.passed) - 1 == self.raise_at:
            raise KeyboardInterrupt if self.raise_at % 2 else Planted


class Trap(nn.Module):
    """A layer that is an event: in the model's forward passes, and in those of a reference."""

    event: Callable[[str], None] = staticmethod(lambda name: None)

    def forward(self, x: Tensor) -> Tensor:
        self.event("forward")
        return x


def instrument(optimizer: steppe.SharpnessAware, model: nn.Module, raise_at: int | None) -> Events:
    """Make every method of every part an event before and after, and the layer in the middle of the model."""
    event = Events(optimizer, raise_at)
    model[2].event = event
    for slot, part in vars(optimizer.parts).items():
        for name in PART_METHODS:
            real = getattr(part, name, None)
            if real is not None:
                setattr(part, name, (around if name == "watch" else before_and_after)(real, event, f"{slot}.{name}"))
    return event


def before_and_after(real, event: Events, name: str):
    def wrapped(*args):
        event(f"before {name}")
        result = real(*args)
        event(f"after {name}")
        return result

    return wrapped


def around(real, event: Events, name: str):
    @contextmanager
    def wrapped(view):
        event(f"before {name}")
        with real(view):
            event(f"in {name}")
            yield
        event(f"after {name}")

    return wrapped


def closure_of(optimizer, model: nn.Module, problem: Problem, event: Callable[[str], None]):
    def closure() -> Tensor:
        optimizer.zero_grad()
        event("before the model")
        x, y, domain = optimizer.ascent_batch(problem.x, problem.y, domain=problem.domain)
        loss = optimizer.objective(losses_of(model, Problem(x, y, domain)), domain)
        event("before backward")
        loss.backward()
        event("after backward")
        return loss

    return closure


class Run:
    """A method after two steps, with an event planted in the third."""

    def __init__(self, name: str, raise_at: int | None = None) -> None:
        self.model = nn.Sequential(*network(normalise=True))
        self.model.insert(2, Trap())
        self.optimizer = METHODS[name](torch.optim.SGD(self.model.parameters(), lr=0.1), self.model)
        self.problems = batches(3)
        for problem in self.problems[:2]:
            self.step(problem)
        self.w = weights(self.model)
        self.events = instrument(self.optimizer, self.model, raise_at)

    def step(self, problem: Problem, event: Callable[[str], None] = lambda name: None) -> None:
        self.optimizer.step(closure_of(self.optimizer, self.model, problem, event))

    def third(self) -> None:
        self.step(self.problems[2], self.events)


def after_the_climb(name: str) -> Tensor | None:
    """The third step once a climb was begun for it in vain; ``None`` where that makes no difference.

    A mean of gradients has seen the gradient of the step that failed; the copy of θ_{t−1} had to make room for w.
    """
    run = Run(name)
    parts = run.optimizer.parts
    if parts.averages:
        for group in run.optimizer.param_groups:
            group["lr"] = 0.0
        steps = run.optimizer._steps
        run.third()
        run.optimizer._steps = steps
        for group in run.optimizer.param_groups:
            group["lr"] = 0.1
    elif parts.needs_previous:
        run.optimizer._has_previous = False
    else:
        return None
    run.third()
    return weights(run.model)


@pytest.mark.parametrize("name", METHODS)
def test_an_exception_at_any_point_of_any_pass(name: str) -> None:
    good = Run(name)
    good.third()
    stepped, points = weights(good.model), good.events.passed
    known = good.events.counted.get("clean") or good.events.counted["climb"]  # running statistics see this pass alone
    assert len(points) > (10 if Run(name).optimizer.climbs else 5)
    other = after_the_climb(name)
    for number, point in enumerate(points):
        run = Run(name, raise_at=number)
        model = run.model
        with pytest.raises((KeyboardInterrupt, Planted)):
            run.third()
        assert run.events.passed[-1] == point
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()), point
        if "stepped" in point:  # the base optimizer has stepped
            assert torch.equal(weights(model), stepped), point
            continue
        assert torch.equal(weights(model), run.w), point
        buffers = list(model.buffers())
        assert any(all(map(torch.equal, buffers, expected)) for expected in known), point
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
        run.events.raise_at = None
        run.third()  # and it goes on as if nothing had been
        in_vain = point.startswith("descent") or "combine" in point
        right = [stepped] if other is None or not in_vain else [stepped, other]
        assert any(torch.equal(weights(model), expected) for expected in right), point


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_is_abandoned_is_forgotten(name: str, passes: int) -> None:
    good, run = Run(name), Run(name)
    good.third()
    closure = closure_of(run.optimizer, run.model, run.problems[0], lambda name: None)
    made = []
    for each in run.optimizer.passes():
        with each:
            made.append(run.optimizer._stage.phase)
            closure()
        if len(made) == passes:
            break
    assert torch.equal(weights(run.model), run.w)
    if "descent" in made and (run.optimizer.parts.averages or run.optimizer.parts.needs_previous):
        return  # as above: what is remembered has seen it
    run.third()
    assert torch.equal(weights(run.model), weights(good.model))
