"""The slow weights in the model for a while: the fast ones come back bit for bit, whatever happens meanwhile."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from every_method import Classifier, batch, same, weights
from lookahead_loops import closure_of, train
from test_memory import Live, large_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import steppe


def in_mid_round(inner: str = "bare", dtype: torch.dtype = torch.float32) -> tuple[Classifier, steppe.Lookahead]:
    model = Classifier().to(dtype)
    base = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    optimizer = steppe.Lookahead(steppe.SAM(base, model=model) if inner == "sam" else base, k=3, fast="mean")
    train(optimizer, model, range(5))
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_they_are_shown_and_the_fast_ones_come_back(dtype: torch.dtype) -> None:
    model, optimizer = in_mid_round(dtype=dtype)
    fast, state = weights(model), copy.deepcopy(optimizer.state_dict())
    slow = torch.cat([t.reshape(-1) for t in state["steppe"]["lookahead"]["weights"]["slow"].values()])
    for _ in range(2):
        with optimizer.slow_weights():
            assert torch.equal(weights(model), slow.to(dtype).double())
            assert not torch.equal(weights(model), fast)
        assert torch.equal(weights(model), fast)
        assert same(optimizer.state_dict(), state)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_too(error: type[BaseException]) -> None:
    model, optimizer = in_mid_round()
    fast, state = weights(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error), optimizer.slow_weights():
        raise error
    assert torch.equal(weights(model), fast)
    assert same(optimizer.state_dict(), state)


class InterruptedCopies(TorchDispatchMode):
    """An interrupt after a copy was made or before, as signals come between two calls."""

    def __init__(self, number: int, after: bool) -> None:
        super().__init__()
        self.number, self.after, self.count = number, after, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counts = function in (torch.ops.aten.copy_.default, torch.ops.aten.clone.default)
        self.count += counts
        hit = counts and self.count == self.number
        if hit and not self.after:
            raise KeyboardInterrupt
        result = function(*args, **(kwargs or {}))
        if hit:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_that_hits_the_exchange_itself(dtype: torch.dtype, after: bool) -> None:
    """On the way there and on the way back, at every place."""
    model, optimizer = in_mid_round(dtype=dtype)
    fast, state = weights(model), copy.deepcopy(optimizer.state_dict())
    number = 0
    while True:
        number += 1
        interrupts = InterruptedCopies(number, after)
        try:
            with interrupts, optimizer.slow_weights():
                pass
        except KeyboardInterrupt:
            assert torch.equal(weights(model), fast), number
            assert same(optimizer.state_dict(), state), number
        else:
            break
    assert number - 1 == 6 * (3 if dtype == torch.bfloat16 else 2 * 3)  # six parameters


def test_before_the_first_step_nothing_happens() -> None:
    model = Classifier()
    optimizer = steppe.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    before, versions = weights(model), [p._version for p in model.parameters()]
    with optimizer.slow_weights():
        assert torch.equal(weights(model), before)
    assert [p._version for p in model.parameters()] == versions


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda optimizer: optimizer.step(), r"step\(\) inside slow_weights\(\): it would train the slow weights"),
        (lambda optimizer: optimizer.step(lambda: 0.0), r"step\(\)"),
        (lambda optimizer: optimizer.state_dict(), "saving"),
        (lambda optimizer: optimizer.extra_state(), "saving"),
        (lambda optimizer: optimizer.load_state_dict({}), r"load_state_dict\(\)"),
        (lambda optimizer: optimizer.load_extra_state({}), "loading"),
        (lambda optimizer: optimizer.slow_weights().__enter__(), r"slow_weights\(\) inside slow_weights\(\)"),
        (copy.deepcopy, "copying"),
        (pickle.dumps, "copying"),
    ],
)
def test_what_cannot_be_done_inside_says_why_and_does_nothing(call: Any, what: str, begun: bool) -> None:
    model, optimizer = in_mid_round()
    if not begun:
        optimizer = steppe.Lookahead(optimizer.base)
    fast, state = weights(model), copy.deepcopy(optimizer.state_dict())
    with optimizer.slow_weights():
        with pytest.raises(RuntimeError, match=what + r".*(inside slow_weights\(\)|belongs after the `with` block)"):
            call(optimizer)
        shown = weights(model)
    assert torch.equal(shown, fast) is not begun
    assert torch.equal(weights(model), fast)
    assert same(optimizer.state_dict(), state)
    train(optimizer, model, range(1))


@pytest.mark.parametrize("inner", ["bare", "sam"])
def test_an_evaluation_in_mid_round_changes_nothing(inner: str) -> None:
    finals = []
    for evaluates in (False, True):
        model, optimizer = in_mid_round(inner)
        for number in range(5):
            train(optimizer, model, [number])
            if evaluates:
                with optimizer.slow_weights(), torch.inference_mode():
                    model.eval()(batch(9)[0])
                model.train()
        finals.append((model.state_dict(), optimizer.state_dict()))
    assert same(*finals)


def test_a_graph_across_it_is_refused_by_autograd() -> None:
    """The weights are written to in place: a forward pass before it and a backward pass inside are of two models."""
    model, optimizer = in_mid_round()
    loss = model(batch(0)[0]).sum()
    with optimizer.slow_weights(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_exact_loop_between_two_passes_of_a_sharpness_aware_step() -> None:
    """Whoever looks at the slow weights at w + ε finds w + ε again."""
    model, optimizer = in_mid_round("sam")
    closure = closure_of(optimizer, model, 0)
    with optimizer.climbing():
        closure()
    with optimizer.perturbed():
        before = weights(model)
        with optimizer.slow_weights():
            assert not torch.equal(weights(model), before)
        assert torch.equal(weights(model), before)
        closure()
    optimizer.step()


def test_it_takes_no_copy_of_the_weights_but_one_parameter_at_a_time() -> None:
    model = large_model()
    optimizer = steppe.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=5)
    with Live() as live:
        for p in model.parameters():
            live.note(p)
        size = live.now
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.zero_grad()
        held = live.peak = live.now
        with optimizer.slow_weights():
            pass
        assert live.now == held
    assert live.peak - held <= size / 8 + 64


def test_the_memory_of_weights_stays_where_it_is() -> None:
    """Others refer to it: captured graphs, the flat weights of recurrent layers."""
    model = nn.LSTM(3, 4)
    optimizer = steppe.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=2)

    def places() -> list[int]:
        return [p.data_ptr() for p in model.parameters()]

    before, shown = places(), []
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        with optimizer.slow_weights():
            shown.append(places())
    assert [places(), *shown] == [before] * 4


def test_running_statistics_stay_the_models() -> None:
    model, optimizer = in_mid_round()
    before: dict[str, Tensor] = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with optimizer.slow_weights():
        assert same(dict(model.named_buffers()), before)
