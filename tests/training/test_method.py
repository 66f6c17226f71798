"""A sum in a training loop of one's own: what its step does with the state of penalties, and what is saved."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from sums import a_model, built, closure_for, problems, same, train
from torch import Tensor

import steppe
from steppe.training.hyper import WORDS

SOON = {"fishr.anneal_steps": 2, "fishr.weight": 10.0}
SUMS = {
    **{word: {} for word in WORDS},
    "fishr": SOON,
    "vrex": {"anneal_steps": 2},
    "irm": {"anneal_steps": 2},
    "coral+disam+sagm": {},
    "mixup+tram+looksam": {"every": 2},
    "fishr+groupdro+tram": SOON,
    "mesa+friendly+tram-ema+gsam": {"mesa.decay": 0.5, "tram-ema.decay": 0.5},
    "trpo+r3f+disam": {"m": 2},
    "lookahead": {"k": 4, "alpha": 0.5, "state": "pullback"},
    "lookahead-mean": {"k": 4, "alpha": 0.5, "state": "reset"},
    "lookahead-anchor": {"k": 4, "anchor": 0.1, "anchor_reduction": "sum"},
    "disam+tram+gsam+lookahead-mean": {"k": 4, "anchor": 0.1},
    "friendly+swad": {"n_converge": 1},
}


@pytest.mark.parametrize("name", SUMS)
def test_stopped_after_any_step_it_goes_on_bit_for_bit(name: str) -> None:
    model = a_model(dropout=0.2)
    method = built(name, model, SUMS[name], torch.optim.AdamW, lr=0.01)
    files: list[bytes] = []
    for step in range(6):
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "method": method.state_dict(), "random": torch.get_rng_state()}, file)
        files.append(file.getvalue())
        train(method, model, 1, first=step)
    expected = [parameter.detach() for parameter in model.parameters()]
    for step, content in enumerate(files):
        state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        other = a_model(dropout=0.2)
        another = built(name, other, SUMS[name], torch.optim.AdamW, lr=0.01)
        other.load_state_dict(state["model"])
        another.load_state_dict(state["method"])
        torch.set_rng_state(state["random"])
        assert same(train(another, other, 6 - step, first=step), expected), f"from step {step}"


def test_the_state_of_another_sum_is_refused() -> None:
    model = a_model()
    state = built("fishr+disam", model).state_dict()
    with pytest.raises(ValueError, match="the state has the penalties fishr, 'disam' has none"):
        built("disam", model).load_state_dict(state)
    with pytest.raises(ValueError, match="the state has the penalties fishr, 'coral' has coral"):
        built("coral", model).load_state_dict(state)


def test_the_loss_is_the_objective_and_all_penalties_and_values_says_which() -> None:
    model = a_model()
    method = built("coral+vrex+disam", model, {"coral.weight": 2.0, "anneal_steps": 0})
    x, y, domain = problem = problems(1)[0]
    features = model.body(x)
    losses = torch.nn.functional.cross_entropy(model.head(features), y, reduction="none")
    coral = steppe.penalties.CORAL(2.0)(features=features, domain=domain)
    vrex = steppe.penalties.VREx(10.0, 0)(losses=losses, domain=domain)
    seen: list[dict[str, Tensor]] = []
    inner = closure_for(method, model, problem)

    def closure() -> Tensor:
        loss = inner()
        seen.append(method.values)
        return loss

    loss = method.step(closure)
    torch.testing.assert_close(loss, (losses.mean() + coral + vrex).detach())
    assert [set(values) for values in seen] == [{"coral", "vrex"}] * 2
    torch.testing.assert_close(seen[0], {"coral": coral.detach(), "vrex": vrex.detach()})
    assert not any(value.requires_grad for value in method.values.values())
    assert method.needs == {"features"}


def test_the_climb_s_gradient_has_the_penalties_too() -> None:
    # To first order the loss with its penalty rises by ρ times the norm of its whole gradient.
    model = a_model()
    method = built("coral+sam", model, {"coral.weight": 100.0, "rho": 1e-3})
    values: list[float] = []
    inner = closure_for(method, model, problems(1)[0])

    def closure() -> Tensor:
        loss = inner()
        values.append(loss.item())
        return loss

    method.step(closure)
    rise, norm = values[1] - values[0], float(method.optimizer.diagnostics["gradient_norm"])
    assert rise == pytest.approx(1e-3 * norm, rel=0.05)
    assert norm > 10 * float(_plain_norm())


def _plain_norm() -> Tensor:
    model = a_model()
    method = built("sam", model)
    method.step(closure_for(method, model, problems(1)[0]))
    return method.optimizer.diagnostics["gradient_norm"]


@pytest.mark.parametrize("base", [torch.optim.Adam, torch.optim.SGD])
def test_where_a_weight_jumps_the_base_optimizer_begins_anew(base: Any) -> None:
    model = a_model()
    options = {"lr": 0.01} | ({"momentum": 0.9} if base is torch.optim.SGD else {})
    method = built("vrex+disam", model, {"anneal_steps": 3}, base, **options)
    filled = []
    for step in range(5):
        train(method, model, 1, first=step)
        filled.append(bool(method.base.state))
    assert filled == [True, True, False, True, True]
    assert method.base.param_groups[0]["lr"] == 0.01


# --- steps that a scaler skips ---


class Overflowing(torch.amp.GradScaler):
    """Scales as asked for, on the CPU; the factor of one step is beyond what float32 holds."""

    def __init__(self, at: int) -> None:
        super().__init__("cpu", init_scale=8.0, growth_interval=1000)
        self.at, self.calls = at, 0

    def scale(self, outputs: Any) -> Any:
        scaled = super().scale(outputs)
        return scaled * torch.inf if self.calls == self.at else scaled


def scaled_steps(name: str, hyper: dict[str, Any], *, overflow_at: int, batches: list[int]) -> tuple[Any, Any]:
    model = a_model()
    method = built(name, model, hyper)
    scaler = Overflowing(overflow_at)
    for number in batches:
        method.step(closure_for(method, model, problems(1, number)[0], scaler), scaler=scaler)
        scaler.update()
        scaler.calls += 1
    return model, method


@pytest.mark.parametrize("name", ["fishr+groupdro+disam", "vrex+gsam", "trpo", "mesa+sam"])
def test_a_step_that_was_skipped_leaves_no_trace_in_any_penalty(name: str) -> None:
    hyper = {"mesa": {"mesa.decay": 0.5}, "fishr": SOON, "vrex": {"anneal_steps": 2}}.get(name[:5].rstrip("+"), {})
    _, method = scaled_steps(name, hyper, overflow_at=2, batches=[0, 1, 7, 2])
    _, undisturbed = scaled_steps(name, hyper, overflow_at=99, batches=[0, 1, 2])
    found, expected = method.state_dict()["penalties"], undisturbed.state_dict()["penalties"]
    assert found.keys() == expected.keys() == {word for word in name.split("+") if "penalty" in WORDS[word].fills}
    for word in expected:
        torch.testing.assert_close(found[word], expected[word], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["fishr+groupdro+tram-fisher", "fishr+groupdro+tram-fisher+disam+sagm"])
def test_the_state_of_penalties_moves_by_the_batch_not_by_its_noised_inputs(name: str) -> None:
    states = []
    for word in (name, "fishr+groupdro+fsam"):
        model = a_model()
        method = built(word, model)
        train(method, model, 1)
        states.append(method.state_dict()["penalties"])
    assert states[0]["groupdro"]["log_weights"].unique().numel() > 1
    for word in ("fishr", "groupdro"):
        torch.testing.assert_close(states[0][word], states[1][word], rtol=0, atol=0)


def test_a_skipped_step_still_lets_mixup_draw_anew() -> None:
    model = a_model()
    method = built("mixup", model)
    assert method.mixup is not None
    x, y, domain = problems(1)[0]
    first = method.mixup(x, y, domain)
    assert torch.equal(method.mixup(x, y, domain).x, first.x), "one draw a step"
    with pytest.raises(ZeroDivisionError):
        method.step(lambda: 1 / 0)
    assert not torch.equal(method.mixup(x, y, domain).x, first.x)


def test_a_wrapped_model_is_handed_on() -> None:
    model = a_model()
    method = built("trpo+tram", model)
    wrapped = torch.nn.Sequential(model)
    method.attach(wrapped)
    assert method.optimizer.model is wrapped
    (trpo,) = method.penalties.values()
    assert isinstance(trpo, steppe.penalties.TRPO)
    assert trpo.model is wrapped
    assert "TRPO" in repr(method)
