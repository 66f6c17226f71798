"""GradScaler: scaling changes nothing, overflow in any pass skips the step and leaves everything as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from every_method import Classifier, batch, closure_of, same, weights
from problems import EVERY
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

import steppe

method = pytest.mark.parametrize("name", EVERY)
WAYS = ["closure", "contexts"]
BARE = ["sam", "asam", "gsam", "sagm", "fisher", "friendly", "vasso", "friendly+fisher"]
"""The methods whose first gradient a loop may take on its own."""


class Run:
    """Training in float64, where a power of two changes no bit, with or without a scaler.

    Attributes:
        passes: the names of the last step's passes.
        overflows_in: the pass in which one number of the gradient becomes infinite, or ``None``.
    """

    def __init__(self, name: str, scale: float | None = 1024.0, *, clip: float | None = None, **base: Any) -> None:
        self.model = Classifier().double()
        self.optimizer = EVERY[name](torch.optim.AdamW(self.model.parameters(), lr=0.01, **base), self.model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        self.clip = clip
        self.passes: list[str] = []
        self.overflows_in: str | None = None
        torch.manual_seed(0)

    def step(self, number: int, how: str = "closure") -> None:
        self.passes = []
        closure = closure_of(self.optimizer, self.model, number, scaler=self.scaler, after=self._after)
        if how == "closure":
            self.optimizer.step(closure, scaler=self.scaler)
        elif how == "bare":
            closure()
            with self.optimizer.perturbed(self.scaler):
                closure()
            self.scaler.step(self.optimizer)
        else:
            for each in self.optimizer.passes(self.scaler):
                with each:
                    closure()
            if self.clip is not None:
                self.scaler.unscale_(self.optimizer)
                clip_grad_norm_(self.model.parameters(), self.clip)
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def _after(self, name: str) -> None:
        self.passes.append(name)
        if name == self.overflows_in:
            gradient = self.model.first.weight.grad
            assert gradient is not None
            gradient[0, 0] = torch.inf

    def state(self) -> dict[str, Any]:
        """Everything that a step changes, but for θ_{t−1}: whose place w takes at every climb."""
        state = deepcopy(self.optimizer.state_dict())
        state["steppe"].pop("previous", None)
        return {"weights": weights(self.model), **state}


@pytest.mark.parametrize(("name", "how"), [*itertools.product(EVERY, WAYS), *((name, "bare") for name in BARE)])
def test_scaling_changes_nothing(name, how) -> None:
    """Neither for what is not homogeneous in the gradient (Fisher, SAGM), nor, with a scale that changes between the
    steps, for what remembers gradients.
    """
    plain, scaled = Run(name, None), Run(name)
    for number in range(5):
        plain.step(number, how)
        scaled.step(number, how)
        scaled.scaler.update(2.0 ** (12 - 2 * number))
    torch.testing.assert_close(weights(scaled.model), weights(plain.model), atol=1e-12, rtol=0)


def places(name: str) -> list[tuple[str, str, int]]:
    """(name, a pass that leaves a gradient, a step that makes it)."""
    run = Run(name)
    run.step(0)
    cycle = getattr(run.optimizer.parts.descent, "every", 1)
    found = [(name, each, cycle) for each in dict.fromkeys(run.passes) if each != "survey"]
    return found if cycle == 1 else [*found, (name, "climb", 1)]  # the one pass of a step that re-uses the climb


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("name", "where", "when"), [place for name in EVERY for place in places(name)])
def test_overflow_in_any_pass_skips_the_step_and_nothing_remembers_it(name, where, when, how, fused) -> None:
    """A fused optimizer is called all the same, and skips on the device; its hooks say that it has stepped."""
    run, twin = Run(name, fused=fused), Run(name, fused=fused)
    for number in range(when):
        run.step(number, how)
        twin.step(number, how)
    before = run.state()
    run.overflows_in = where
    run.step(10, how)
    assert where in run.passes
    assert run.scaler.get_scale() == 512
    assert same(run.state(), before)
    run.overflows_in = None
    radii = []
    for number in range(when, when + 4):
        run.step(number, how)
        twin.step(number, how)
        radii.append(float(run.optimizer.diagnostics["radius"]))
    if run.optimizer.parts.needs_previous:
        assert radii[0] == 0 < radii[1]  # the weights one step ago are those of now
    else:
        torch.testing.assert_close(weights(run.model), weights(twin.model), atol=1e-12, rtol=0)


@method
@pytest.mark.parametrize("how", WAYS)
def test_a_skipped_step_leaves_batch_norm_as_a_skipped_erm_step_does(name, how) -> None:
    run, erm = Run(name), Classifier().double()
    parts, share = run.optimizer.parts, run.optimizer._share
    run.overflows_in = "climb"
    run.step(0, how)
    if parts.disturbs or share.parts > 1:
        assert run.model.norm.num_batches_tracked == share.parts  # of noised inputs, or of parts of the batch
        return
    erm(batch(0, torch.float64)[0])
    for key, buffer in run.model.named_buffers():
        torch.testing.assert_close(buffer, dict(erm.named_buffers())[key], atol=1e-12, rtol=0)


@method
def test_clipping_unscaled_gradients_between_the_passes_and_the_step(name) -> None:
    plain, scaled, free = Run(name, None, clip=0.05), Run(name, clip=0.05), Run(name)
    for number in range(4):
        for run in (plain, scaled, free):
            run.step(number, "contexts")
    torch.testing.assert_close(weights(scaled.model), weights(plain.model), atol=1e-12, rtol=0)
    assert not torch.allclose(weights(scaled.model), weights(free.model))


def test_clipping_bounds_the_step() -> None:
    run = Run("sagm", clip=1e-3)
    run.optimizer = EVERY["sagm"](torch.optim.SGD(run.model.parameters(), lr=1.0), run.model)
    before = weights(run.model)
    run.step(0, "contexts")
    assert (weights(run.model) - before).norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("how", ["step(scaler=)", "unscaled, step(scaler=)", "scaler.step", "closure"])
def test_hooks_and_schedulers_see_every_step_once(how) -> None:
    run = Run("sam")
    seen: list[str] = []
    run.optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    run.optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    for scheduled in (False, True):
        if scheduled:
            scheduler = torch.optim.lr_scheduler.ConstantLR(run.optimizer)
        bound = vars(run.optimizer).get("step")
        seen.clear()
        if how in ("closure", "scaler.step"):
            run.step(0, "closure" if how == "closure" else "contexts")
        else:
            for each in run.optimizer.passes(run.scaler):
                with each:
                    closure_of(run.optimizer, run.model, 0, scaler=run.scaler)()
            if how.startswith("unscaled"):
                run.scaler.unscale_(run.optimizer)
            run.optimizer.step(scaler=run.scaler)
            run.scaler.update()
        assert seen == ["before", "after"]
        assert vars(run.optimizer).get("step") is bound
        assert run.optimizer._steps == 1 + scheduled
    scheduler.step()  # which warns where it thinks that there was no step


def test_overflow_after_unscaling_skips_too() -> None:
    run = Run("friendly", clip=1.0)
    run.step(0, "contexts")
    before = run.state()
    run.overflows_in = "descent"
    run.step(1, "contexts")
    assert same(run.state(), before)


def fp16_training(make: Callable[..., steppe.SharpnessAware], device: str, steps: int) -> tuple[list[float], float]:
    """Losses and the last scale of training in fp16 autocast, begun with a scale that is far too large."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 6, device=device), torch.randint(0, 3, (32,), device=device)
    domain = torch.arange(32, device=device) % 4
    model = Classifier().to(device)
    optimizer = make(torch.optim.AdamW(model.parameters(), lr=0.02), model)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**24)
    before, losses = weights(model), []

    for step in range(steps):

        def closure() -> Tensor:
            optimizer.zero_grad()
            inputs, labels, domains = optimizer.ascent_batch(x, y, domain=domain)
            with torch.autocast(device, dtype=torch.float16):
                loss = optimizer.objective(cross_entropy(model(inputs), labels, reduction="none"), domains)
            scaler.scale(loss).backward()
            return loss

        losses.append(float(optimizer.step(closure, scaler=scaler)))
        scaler.update()
        if step == 0:
            assert torch.equal(weights(model), before)
    assert weights(model).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in tensors_in(optimizer.state_dict()))
    return losses, scaler.get_scale()


def tensors_in(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    inside = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for each in inside for tensor in tensors_in(each)]


@method
def test_fp16_autocast_with_a_scale_that_overflows_at_first(name) -> None:
    losses, scale = fp16_training(EVERY[name], "cpu", 40)
    assert scale < 2.0**24
    assert losses[-1] < 0.8 * losses[0]


def test_a_scaler_that_is_switched_off_changes_nothing() -> None:
    run, plain = Run("sagm", None), Run("sagm", None)
    run.step(0)
    plain.optimizer.step(closure_of(plain.optimizer, plain.model, 0))
    assert torch.equal(weights(run.model), weights(plain.model))
    assert isinstance(run.model, nn.Module)
