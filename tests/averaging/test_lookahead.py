"""What Lookahead promises beside its formulas: the inner optimizer bit for bit, counters, precision, parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_method import Classifier, batch, same, weights
from lookahead_loops import closure_of, train
from problems import EVERY, batches, losses_of, network
from torch import Tensor, nn

import steppe

BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"fast": "mean", "anchor": 100.0, "anchor_reduction": "sum", "state": "pullback"},
}


# --- k = 1, α = 1 ---


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", EVERY)
def test_with_one_step_and_a_share_of_one_it_is_the_inner_optimizer_bit_for_bit(name: str, variant: str) -> None:
    models, states = [], []
    for wrapped in (False, True):
        model = Classifier(dropout=0.2)
        optimizer: Any = EVERY[name](torch.optim.AdamW(model.parameters(), lr=0.01), model)
        if wrapped:
            optimizer = steppe.Lookahead(optimizer, k=1, alpha=1, **VARIANTS[variant])
        torch.manual_seed(1)
        train(optimizer, model, range(5))
        models.append(model.state_dict())
        states.append(optimizer.state_dict())
    assert same(*models)
    assert states[1]["steppe"].pop("lookahead")["rounds"] == 5
    assert same(*states)


@pytest.mark.parametrize("how", ["closure", "without"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("base", BASES)
def test_around_a_bare_optimizer_too(base: str, variant: str, dtype: torch.dtype, how: str) -> None:
    options = VARIANTS[variant]
    if base == "lbfgs":
        if dtype == torch.bfloat16 or how == "without":
            return
        options = {**options, "anchor": 0.0}
    finals = []
    for wrapped in (False, True):
        model = Classifier().to(dtype)
        optimizer = BASES[base](model.parameters())
        if wrapped:
            optimizer = steppe.Lookahead(optimizer, k=1, alpha=1.0, **options)
        train(optimizer, model, range(5), how)
        finals.append((model.state_dict(), optimizer.state_dict()["state"]))
    assert same(*finals)


def test_a_share_of_one_is_the_inner_optimizer_whatever_k_and_whatever_it_diverges_to() -> None:
    finals = []
    for wrapped in (False, True):
        model = network()
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=float("inf"))
        if wrapped:
            optimizer = steppe.Lookahead(optimizer, k=2, alpha=1)
        train(optimizer, model, range(6))
        finals.append(weights(model))
    assert not finals[0].isfinite().all()
    assert torch.equal(*(torch.nan_to_num(final, nan=7.0) for final in finals))


# --- rounds ---


def test_rounds_and_a_schedule_that_advances_once_a_round() -> None:
    model = Classifier()
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = steppe.Lookahead(base, k=3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen = []
    assert not optimizer.round_ended
    for number in range(7):
        train(optimizer, model, range(number, number + 1))
        if optimizer.round_ended:
            scheduler.step()
        seen.append((optimizer.rounds, optimizer.round_step, optimizer.round_ended, base.param_groups[0]["lr"]))
    assert seen == [
        (0, 1, False, 1.0),
        (0, 2, False, 1.0),
        (1, 0, True, 0.5),
        (1, 1, False, 0.5),
        (1, 2, False, 0.5),
        (2, 0, True, 0.25),
        (2, 1, False, 0.25),
    ]


@pytest.mark.parametrize("attached", ["outer", "middle", "inner"])
def test_a_scheduler_attached_to_any_of_them_drives_all(attached: str) -> None:
    model = Classifier()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    middle = steppe.SAM(base, model=model)
    outer = steppe.Lookahead(middle, k=2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        {"outer": outer, "middle": middle, "inner": base}[attached], max_lr=1.0, total_steps=10
    )
    for number in range(4):
        outer.step(closure_of(outer, model, number))
        scheduler.step()
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (outer, middle, base)]
    assert rates == [scheduler.get_last_lr()[0]] * 3
    assert rates[0] != 0.1


def test_weights_that_are_loaded_before_the_first_step_are_the_slow_ones() -> None:
    model = network()
    optimizer = steppe.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=5)
    optimizer.state_dict()

    def failing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(failing)
    other = network(seed=3)
    model.load_state_dict(other.state_dict())
    train(optimizer, model, range(2))
    with optimizer.slow_weights():
        assert torch.equal(weights(model), weights(other))
    assert optimizer.round_step == 2


@pytest.mark.parametrize("inner", ["bare", "sam"])
def test_a_step_that_moves_nothing_leaves_no_trace_and_a_rate_of_zero_alone_is_a_step(inner: str) -> None:
    """The first is how distributed checkpoints initialise an optimizer, the second how a warm-up may begin."""
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    optimizer = steppe.Lookahead(steppe.SAM(base) if inner == "sam" else base, k=2)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(closure=None)
    assert (optimizer.rounds, optimizer.round_step) == (0, 0)
    assert not optimizer.extra_state()["lookahead"]["known"]
    assert len(base.state) == 4
    for problem in batches(3):
        optimizer.zero_grad()
        losses_of(model, problem).mean().backward()
        optimizer.step()
    assert (optimizer.rounds, optimizer.round_step) == (1, 1)


# --- precision ---


@pytest.mark.parametrize("fast", ["last", "mean"])
def test_slow_weights_of_half_precision_ones_are_kept_in_float32(fast: str) -> None:
    """α times a step is below bfloat16's resolution: kept in it, φ would stand still."""
    parameter = nn.Parameter(torch.full((4,), 256.0, dtype=torch.bfloat16))
    optimizer = steppe.Lookahead(torch.optim.SGD([parameter], lr=2.0), k=2, alpha=0.01, fast=fast)
    phi = 256.0
    for _ in range(60):
        theta = parameter.detach()[0].item()
        for step in (1, 2):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            if step == 1:
                with optimizer.slow_weights():
                    assert parameter.detach()[0].item() == float(torch.tensor(phi).bfloat16())
        first = float(torch.tensor(theta - 2).bfloat16())
        last = float(torch.tensor(first - 2).bfloat16())
        phi += 0.01 * ((last if fast == "last" else (first + last) / 2) - phi)
        assert parameter.detach()[0].item() == float(torch.tensor(phi).bfloat16())
    (slow,) = optimizer.extra_state()["lookahead"]["weights"]["slow"].values()
    assert slow.dtype == torch.float32
    assert float(slow[0]) == pytest.approx(phi, rel=1e-5)
    assert phi < 255


def test_the_pull_on_half_precision_weights_is_computed_in_float32() -> None:
    parameter = nn.Parameter(torch.full((3,), 256.0, dtype=torch.bfloat16))
    optimizer = steppe.Lookahead(torch.optim.SGD([parameter], lr=1.0), k=9, anchor=1.0, anchor_reduction="sum")
    for gradient in (2.0, 2.0, 0.5):
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    # θ: 254, then 252 with the mean 253, whose distance a sum of θ and −m in bfloat16 would still find; 0.5 + 2 (−1)
    assert parameter.grad.tolist() == [-1.5] * 3
    assert parameter.dtype == parameter.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("inner", "k"), [("bare", 1), ("sam", 3)])
def test_the_whole_loop_inside_one_autocast_region(inner: str, k: int) -> None:
    """Casts that autocast has cached are dropped at the end of a round, and where the slow weights come and go."""
    results = []
    for cached in (True, False):
        model = Classifier()
        base = torch.optim.SGD(model.parameters(), lr=0.5)
        optimizer = steppe.Lookahead(base if inner == "bare" else steppe.SAM(base), k, alpha=0.3)
        seen = []
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
            for number in range(4):
                train(optimizer, model, [number])
                seen.append(model(batch(0)[0]))
                with optimizer.slow_weights():
                    seen.append(model(batch(0)[0]))
                seen.append(model(batch(0)[0]))
        results.append([*seen, weights(model)])
    assert same(*results)


# --- parameters ---


def test_a_parameter_that_has_no_gradient_is_left_alone_and_yet_counts() -> None:
    used, unused, frozen = (nn.Parameter(torch.ones(4, dtype=torch.float64)) for _ in range(3))
    frozen.requires_grad_(False)
    base = torch.optim.SGD([used, unused, frozen], lr=1.0)
    optimizer = steppe.Lookahead(base, k=3, anchor=8.0)
    for gradient in (1.0, 2.0):
        used.grad = torch.full_like(used, gradient)
        optimizer.step()
    used.grad = torch.ones_like(used)
    optimizer.step()
    # θ_1 = 0, θ_2 = −2, which is 1 away from their mean; n is 8, for the frozen numbers do not count
    assert used.grad.tolist() == [1 - 2 * 8.0 / 8] * 4
    assert unused.grad is None
    assert unused.tolist() == frozen.tolist() == [1.0] * 4


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.sometimes = nn.Linear(6, 3).double(), nn.Linear(6, 3).double()
        self.both = True

    def forward(self, x: Tensor) -> Tensor:
        return self.always(x) + self.sometimes(x) if self.both else self.always(x)


@pytest.mark.parametrize("anchor", [0.0, 0.5])
def test_a_layer_that_only_some_steps_reach_has_a_mean_of_all_steps(anchor: float) -> None:
    model = Branching()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = steppe.Lookahead(base, 4, 0.5, "mean", anchor, anchor_reduction="sum")
    phi, fast = model.sometimes.weight.detach().clone(), []
    optimizer.base.register_step_post_hook(lambda *_: fast.append(model.sometimes.weight.detach().clone()))
    for number, problem in enumerate(batches(4)):
        model.both = number % 2 == 1
        optimizer.zero_grad()
        losses_of(model, problem).mean().backward()
        optimizer.step()
    assert torch.equal(fast[0], phi)
    assert not torch.equal(fast[1], phi)
    torch.testing.assert_close(model.sometimes.weight.detach(), phi + 0.5 * (sum(fast) / 4 - phi), atol=1e-15, rtol=0)


@pytest.mark.parametrize("fast", ["last", "mean"])
def test_a_group_that_is_added_in_mid_round_joins_it(fast: str) -> None:
    """Its slow weights are what it was; for the mean it has been that all the time."""
    first, late = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = steppe.Lookahead(torch.optim.SGD([first], lr=1.0), k=3, alpha=0.5, fast=fast, anchor=0.0)
    for number in range(3):
        if number == 1:
            optimizer.add_param_group({"params": [late], "lr": 3.0})
        for p in optimizer.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    ends = {"last": (-2.0, -5.0), "mean": ((0 - 1 - 2) / 3, (1 - 2 - 5) / 3)}[fast]
    for p, end in zip((first, late), ends, strict=True):
        torch.testing.assert_close(p.detach(), torch.full_like(p, 1 + 0.5 * (end - 1)))


def test_parameters_that_a_library_puts_in_the_place_of_others() -> None:
    """Before the first step nothing is lost; later the new ones begin with what they are."""
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = steppe.Lookahead(base, k=2, alpha=0.5, fast="mean", state="pullback")
    for when in range(2):
        model = network(seed=when)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        before = weights(model)
        train(optimizer, model, range(1))
        with optimizer.slow_weights():
            assert torch.equal(weights(model), before)
        train(optimizer, model, range(1))
        assert optimizer.round_ended
        kept = [*optimizer._memory._kept.values(), *optimizer._inner_state._slow.values()]
        assert [len(tensors) for tensors in kept] == [4] * 3  # nothing of those that are gone


def test_tied_weights_are_one_parameter() -> None:
    shared = nn.Parameter(torch.ones(3))
    model = nn.ParameterList([shared, shared])
    optimizer = steppe.Lookahead(torch.optim.SGD(model.parameters(), lr=1.0), k=2, alpha=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        sum(p.sum() for p in (model[0], model[1])).backward()
        optimizer.step()
    assert model[0] is model[1]
    assert shared.tolist() == [1 + 0.5 * (-3 - 1)] * 3


class Elsewhere(torch.optim.SGD):
    """Calls its closure where the weights are one larger, as other libraries' sharpness-aware optimizers do."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        parameters = self.param_groups[0]["params"]
        torch._foreach_add_(parameters, 1.0)
        with torch.enable_grad():
            loss = closure()
        torch._foreach_sub_(parameters, 1.0)
        super().step()
        return loss


def test_the_mean_is_that_of_the_weights_between_steps_wherever_a_closure_is_called() -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = steppe.Lookahead(Elsewhere([parameter], lr=1.0), k=9, anchor=0.25, anchor_reduction="sum")

    def closure() -> Tensor:
        optimizer.zero_grad()
        (-parameter.sum()).backward()
        return parameter.sum().detach()

    seen = [optimizer.step(closure).item() for _ in range(4)]
    # θ_1 = 1 = m, and θ + 1 is 1 from it: θ_2 = 1 + 1 − ½ · 1; then m is (1 + 1½)/2, and so on
    third = 1.5 + 1 - 0.5 * (1.5 + 1 - 1.25)
    fourth = third + 1 - 0.5 * (third + 1 - (1 + 1.5 + third) / 3)
    assert seen == [1.0, 2.0, 2.5, third + 1]
    assert parameter.item() == pytest.approx(fourth, abs=1e-15)


def test_parameters_of_any_layout_and_dtype() -> None:
    """Channels last, transposed, empty, a number, of several precisions, and larger than a portion."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    values = [
        random(8, 4, 3, 3).to(memory_format=torch.channels_last),
        random(5, 7).t(),
        random(0, 3),
        random(),
        random(2**18 + 5),
        random(700, 800).float(),
        random(6).bfloat16(),
    ]
    parameters = [nn.Parameter(value) for value in values]
    optimizer = steppe.Lookahead(torch.optim.SGD(parameters, lr=0.1), 3, 0.25, "mean", 0.5, anchor_reduction="sum")
    phi = [p.detach().double().clone() for p in parameters]
    gradients = [[torch.randn_like(p) for p in parameters] for _ in range(3)]
    for some in gradients:
        for p, gradient in zip(parameters, some, strict=True):
            p.grad = gradient.clone(memory_format=torch.contiguous_format)
        optimizer.step()
    for p, start, f, g, h in zip(parameters, phi, *gradients, strict=True):
        first = start - 0.1 * f.double()
        second = first - 0.1 * g.double()  # θ_1 is the mean so far: nothing pulls
        third = second - 0.1 * (h.double() + second - (first + second) / 2)
        expected = start + 0.25 * ((first + second + third) / 3 - start)
        tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2}[p.dtype]
        torch.testing.assert_close(p.detach().double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.NAdam])
def test_counters_of_a_parameter_that_is_one_number_are_not_pulled_back(kind: type[torch.optim.Optimizer]) -> None:
    """Nor what Adam and its like accumulate in a product: they have that parameter's shape by chance."""
    finals = []
    for single in (True, False):  # one number, or a vector that is twice this number
        parameter = nn.Parameter(torch.tensor(1.0) if single else torch.ones(2))
        beside = nn.Parameter(torch.ones(3))
        optimizer = steppe.Lookahead(kind([parameter, beside], lr=0.1), k=2, alpha=0.25, state="pullback")
        for gradient in (1.0, -3.0, 2.0, 0.5, 1.0):
            for p in (parameter, beside):
                p.grad = torch.full_like(p, gradient)
            optimizer.step()
        assert optimizer.state[parameter]["step"] == 5
        finals.append(parameter.detach().reshape(-1)[0])
    torch.testing.assert_close(*finals)
    alone = nn.Parameter(torch.tensor(1.0))
    optimizer = steppe.Lookahead(torch.optim.AdamW([alone]), k=2, state="pullback")
    for _ in range(4):
        alone.grad = torch.ones_like(alone)
        optimizer.step()
    assert optimizer.state[alone]["step"] == 4


def test_gradients_that_share_their_memory_are_pulled_apart() -> None:
    a, b = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = steppe.Lookahead(torch.optim.SGD([a, b], lr=1.0), k=9, anchor=0.5, anchor_reduction="sum")
    for gradients in ((1.0, 2.0), (1.0, 2.0)):
        a.grad, b.grad = (torch.full((3,), gradient) for gradient in gradients)
        optimizer.step()
    shared = torch.ones(1).expand(3)
    a.grad = b.grad = shared
    optimizer.step()
    # θ − m after two steps: −2 + 1.5 and −4 + 3
    assert (a.grad.tolist(), b.grad.tolist()) == ([0.5] * 3, [0.0] * 3)
    assert shared.tolist() == [1.0] * 3
