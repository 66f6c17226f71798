"""GradScaler: scaling changes nothing, and a step that is skipped is no step of a round."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from every_method import Classifier, same, weights
from lookahead_loops import closure_of, sharpness_aware
from torch.nn.utils import clip_grad_norm_

import steppe

INNER = {
    "bare": lambda base, model: base,
    "sam": lambda base, model: steppe.SAM(base, model=model),
    "disam+sagm": lambda base, model: steppe.DISAM(base, descent=steppe.GradientMatching(), model=model),
}
WAYS = ["closure", "scaler.step", "step(scaler=)", "unscaled and clipped", "unscaled, step(scaler=)"]
ANCHOR = {"anchor": 0.5, "anchor_reduction": "sum"}


class Run:
    """Training in float64, where a power of two changes no bit, with or without a scaler."""

    def __init__(self, inner: str, scaled: bool = True, **base: Any) -> None:
        self.model = Classifier().double()
        within = INNER[inner](torch.optim.AdamW(self.model.parameters(), lr=0.01, **base), self.model)
        self.optimizer = steppe.Lookahead(within, k=3, alpha=0.5, fast="mean", state="pullback", **ANCHOR)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        self.overflows = False

    def step(self, number: int, how: str) -> None:
        optimizer, scaler = self.optimizer, self.scaler
        closure = closure_of(optimizer, self.model, number, scaler=scaler, after=self._after)
        if how == "closure":
            optimizer.step(closure, scaler=scaler)
        else:
            if sharpness_aware(optimizer):
                for each in optimizer.passes(scaler):
                    with each:
                        closure()
            else:
                closure()
            if how.startswith("unscaled"):
                scaler.unscale_(optimizer)
                clip_grad_norm_(self.model.parameters(), 0.2)
            if how.endswith("step(scaler=)"):
                optimizer.step(scaler=scaler)
            else:
                scaler.step(optimizer)
        scaler.update()

    def _after(self) -> None:
        if self.overflows:
            self.model.first.weight.grad[0, 0] = torch.inf

    def state(self) -> Any:
        return weights(self.model), copy.deepcopy(self.optimizer.state_dict())


def ways(inner: str) -> list[str]:
    return WAYS[1:] if inner == "bare" else WAYS  # a bare optimizer has no place for a scaler beside a closure


@pytest.mark.parametrize("inner", INNER)
def test_hooks_see_every_step_once(inner: str) -> None:
    run, seen = Run(inner), []
    run.optimizer.register_step_post_hook(lambda *_: seen.append("Lookahead"))
    for number in range(2):
        run.step(number, "step(scaler=)")
    assert seen == ["Lookahead"] * 2
    assert run.optimizer.round_step == 2


CASES = [(inner, how, fused) for inner in INNER for how in ways(inner) for fused in (False, True)]


@pytest.mark.parametrize(("inner", "how", "fused"), CASES)
def test_scaling_changes_nothing(inner: str, how: str, fused: bool) -> None:
    """Nor the pull: a fused optimizer inside is given gradients that are still scaled."""
    plain, scaled = Run(inner, scaled=False, fused=fused), Run(inner, fused=fused)
    for number in range(7):
        plain.step(number, how)
        scaled.step(number, how)
        scaled.scaler.update(2.0 ** (12 - number))
    torch.testing.assert_close(weights(scaled.model), weights(plain.model), atol=1e-12, rtol=0)
    assert scaled.optimizer.rounds == plain.optimizer.rounds == 2


def test_the_pull_of_these_runs_matters() -> None:
    run, free = Run("sam"), Run("sam")
    free.optimizer.anchor = 0.0
    for number in range(3):
        run.step(number, "closure")
        free.step(number, "closure")
    assert (weights(run.model) - weights(free.model)).abs().max() > 1e-4


@pytest.mark.parametrize("when", [0, 2, 3, 4])
@pytest.mark.parametrize(("inner", "how", "fused"), CASES)
def test_a_step_that_is_skipped_is_none(inner: str, how: str, fused: bool, when: int) -> None:
    """A fused optimizer inside is called all the same, and skips on the device."""
    run, twin = Run(inner, fused=fused), Run(inner, fused=fused)
    for number in range(when):
        run.step(number, how)
        twin.step(number, how)
    run.optimizer._catch_up()  # it may take in the last weights on the way, and no other
    before = run.state()
    run.overflows = True
    run.step(10, how)
    assert run.scaler.get_scale() == 512
    if when == 0 and fused:  # it has initialised its state all the same
        assert torch.equal(weights(run.model), before[0])
        assert not run.optimizer.extra_state()["lookahead"]["known"]
    else:
        assert same(run.state(), before)
    if how != "scaler.step" and not how.endswith("clipped"):
        assert not run.optimizer.round_ended
    run.overflows = False
    for number in range(when, when + 4):
        run.step(number, how)
        twin.step(number, how)
    torch.testing.assert_close(weights(run.model), weights(twin.model), atol=1e-12, rtol=0)


def test_a_scaler_that_is_switched_off_changes_nothing() -> None:
    for inner in INNER:
        run, plain = Run(inner, scaled=False), Run(inner, scaled=False)
        for number in range(4):
            run.step(number, "step(scaler=)")
            closure = closure_of(plain.optimizer, plain.model, number)
            plain.optimizer.step(closure)
        assert torch.equal(weights(run.model), weights(plain.model))


def test_a_scaler_is_not_told_that_lookahead_unscales_by_itself() -> None:
    """What it asks a fused optimizer for is private, and not passed on."""
    base = torch.optim.AdamW(Classifier().parameters(), fused=True)
    assert base._step_supports_amp_scaling
    assert not hasattr(steppe.Lookahead(base), "_step_supports_amp_scaling")
