from __future__ import annotations

import math

import pytest
import torch

from steppe.training.losses import LossWindow, NonFiniteLossError

DOMAIN = torch.tensor([0, 0, 1, 1, 1])


def window() -> LossWindow:
    return LossWindow(("noto", "line"), torch.device("cpu"))


def step(losses: LossWindow, *passes: list[float], lr: float = 0.1) -> None:
    for values in passes:
        losses.see(torch.tensor(values, requires_grad=True), DOMAIN)
    losses.close_step(lr)


def test_means_by_domain_over_steps() -> None:
    losses = window()
    step(losses, [1.0, 3.0, 3.0, 4.0, 5.0], [9.0] * 5)
    step(losses, [2.0, 2.0, 1.0, 1.0, 1.0], [9.0] * 5, lr=0.05)
    losses.check(2, kept="")
    losses.seconds = 3.0
    assert losses.drain() == {"loss": 2.25, "domain_loss": {"noto": 2.0, "line": 2.5}, "lr": 0.05, "seconds": 1.5}
    assert len(losses) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_broken_step_is_named_with_its_domain_and_learning_rate(value: float) -> None:
    losses = window()
    step(losses, [1.0] * 5)
    step(losses, [1.0, 1.0, 1.0, value, 1.0], lr=0.25)
    step(losses, [math.nan] * 5, lr=0.5)
    with pytest.raises(
        NonFiniteLossError, match=r"step 12 in domain line \((nan|inf)\), at learning rate 0.25; kept it"
    ):
        losses.check(13, kept="kept it")
    with pytest.raises(NonFiniteLossError) as caught:
        losses.check(13, kept="")
    assert (caught.value.step, caught.value.domains, caught.value.lr) == (12, ("line",), 0.25)


def test_a_broken_loss_at_the_perturbed_weights_is_told_apart() -> None:
    losses = window()
    step(losses, [1.0] * 5, [math.inf, 1.0, 1.0, 1.0, 1.0])
    with pytest.raises(NonFiniteLossError, match=r"at w \+ ε is not finite at step 1 in domain noto .*radius"):
        losses.check(1, kept="")


def test_the_window_survives_a_checkpoint() -> None:
    one, other = window(), window()
    for losses in (one, other):
        step(losses, [1.0, 2.0, 3.0, 4.0, 5.0])
    restored = window()
    restored.load_state_dict(one.state_dict())
    for losses in (restored, other):
        step(losses, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert restored.drain() == other.drain()


def test_under_a_scaler_an_overflowing_climb_is_the_scaler_s_business() -> None:
    losses = LossWindow(("noto", "line"), torch.device("cpu"), scaled=True)
    step(losses, [1.0] * 5, [math.nan] * 5)
    losses.check(1, kept="")
    step(losses, [math.nan] * 5, [1.0] * 5)
    with pytest.raises(NonFiniteLossError, match="step 2 in domain noto"):
        losses.check(2, kept="")
