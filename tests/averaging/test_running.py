"""SWA and EMA against their formulas, and torch's class with nothing of the model but its weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from courses import Steps, put, same, saved, small_model, weights
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import steppe
from steppe.averaging import EMA, SWA, SWAD, Average

MAKERS: dict[str, Callable[..., Average]] = {
    "swa": SWA,
    "swa, start": lambda model, **options: SWA(model, start=4, **options),
    "ema": lambda model, **options: EMA(model, decay=0.8, **options),
    "ema, slow": EMA,
}
kinds = pytest.mark.parametrize("kind", MAKERS)


def test_swa_is_the_mean_of_all_steps_but_the_first() -> None:
    for start in (0, 1, 5):
        model = Steps(9)
        swa = SWA(model, start)
        for made in range(1, 10):
            model.step()
            swa.update()
            swa.segment(math.nan)  # is not asked for
            if made > start:
                found = swa.finish()["w"]
                expected = [0.0] * start + [1 / (made - start)] * (made - start) + [0.0] * (9 - made)
                torch.testing.assert_close(found.tolist(), expected, rtol=1e-14, atol=1e-16)
                assert (swa.start, swa.end) == (start + 1, made)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_ema_is_its_formula(decay) -> None:
    model = Steps(6)
    ema = EMA(model, decay)
    for made in range(1, 7):
        model.step()
        ema.update()
        found = ema.finish()["w"]
        later = [(1 - decay) * decay ** (made - step) for step in range(2, made + 1)]
        expected = [decay ** (made - 1), *later, *[0.0] * (6 - made)]
        torch.testing.assert_close(found.tolist(), expected, rtol=1e-13, atol=1e-15)
        assert (ema.start, ema.end) == (1, made)


@pytest.mark.parametrize(
    ("make", "function"), [(SWA, get_swa_multi_avg_fn()), (lambda model: EMA(model, 0.9), get_ema_multi_avg_fn(0.9))]
)
def test_it_is_torchs_average(make, function) -> None:
    model = small_model()
    average, torchs = make(model), AveragedModel(model, multi_avg_fn=function)
    for step in range(7):
        put(model, step)
        average.update()
        torchs.update_parameters(model)
    assert same(average.finish(), torchs.module.state_dict())


class Reached:
    """What a hook may reach, and must not be copied."""

    def __call__(self, *_: object) -> None:
        pass

    def __deepcopy__(self, memo: dict) -> None:
        raise AssertionError("the hook was copied")


@kinds
def test_hooks_are_not_copied(kind) -> None:
    model = small_model()
    model.register_forward_hook(Reached())
    model[0].weight.register_hook(Reached())
    tram = steppe.TRAM(torch.optim.SGD(model.parameters(), lr=0.1), model)
    average = MAKERS[kind](model)
    for _ in range(6):
        tram.zero_grad()
        with tram.climbing():
            average.update()  # while a trust region watches the model
            model(torch.randn(5, 3)).sum().backward()
    model.load_state_dict(average.finish())
    assert [type(module) for module in average._averaged.modules()] == [AveragedModel, nn.ParameterList]


@kinds
def test_resuming_at_every_step_is_bit_identical(kind) -> None:
    def train(average: Average, model: nn.Module, begin: int, states: list | None = None) -> dict[str, Tensor]:
        for step in range(begin, 9):
            if states is not None:
                states.append(saved(average))
            put(model, step)
            average.update()
        return weights(average.finish())

    model, states = small_model(), []
    undisturbed = MAKERS[kind](model)
    expected = train(undisturbed, model, 0, states)
    for begin, state in enumerate(states):
        other = small_model(seed=begin)
        resumed = MAKERS[kind](other)
        for step in range(6):
            put(other, 1000 + step)
            resumed.update()  # what it was before does not matter
        resumed.load_state_dict(state)
        assert same(train(resumed, other, begin), expected), begin
        assert (resumed.start, resumed.end) == (undisturbed.start, undisturbed.end)


def test_half_precision_is_averaged_in_float32() -> None:
    """In bfloat16 an exponential mean with decay 0.999 would never leave 1."""
    model = nn.Linear(2, 2).bfloat16()
    swa, ema = SWA(model), EMA(model)
    for step in range(2000):
        nn.init.constant_(model.weight, 1 if step == 0 else 2)
        nn.init.constant_(model.bias, step % 2)
        swa.update()
        ema.update()
    for average, weight in ((swa, 2 - 1 / 2000), (ema, 2 - 0.999**1999)):
        found = average.state_dict()["weights"]["average"]["weight"]
        torch.testing.assert_close(found, torch.full((2, 2), weight), rtol=2e-5, atol=0)
        assert average.finish()["weight"].dtype == torch.bfloat16
    assert (swa.finish()["bias"] == 0.5).all()


@kinds
def test_what_does_not_move_stays_to_the_bit_and_tied_weights_are_one(kind) -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False), nn.Linear(4, 4).requires_grad_(False))
    model[1].weight = model[0].weight
    average, frozen = MAKERS[kind](model), model[2].weight.clone()
    for step in range(7):
        nn.init.constant_(model[0].weight, step)
        average.update()
    assert set(average.state_dict()["weights"]["average"]) == {"0.weight", "2.weight", "2.bias"}
    found = average.finish()
    assert torch.equal(found["2.weight"], frozen)
    assert torch.equal(found["0.weight"], found["1.weight"])
    model.load_state_dict(found)
    assert model[0].weight is model[1].weight
    assert 0 < model[0].weight[0, 0].item() < 6


@kinds
def test_buffers_are_those_of_the_model_and_finishing_changes_nothing(kind) -> None:
    model = small_model()
    average = MAKERS[kind](model)
    for step in range(6):
        put(model, step)
        model(torch.randn(4, 3))
        average.update()
    before, buffers = [p.detach().clone() for p in model.parameters()], [b.clone() for b in model.buffers()]
    first, second, names = average.finish(), average.finish(), [name for name, _ in model.named_buffers()]
    assert same(first, second)
    assert all(map(torch.equal, model.parameters(), before))
    with torch.no_grad():
        for tensor in (*model.buffers(), *first.values()):
            tensor.zero_()  # the caller's own
    assert all(map(torch.equal, [second[name] for name in names], buffers))
    third = average.finish()
    assert same(weights(third), weights(second))
    assert all(not third[name].any() for name in names)


@pytest.mark.parametrize(("steps", "why"), [(0, "no step yet"), (4, "4 steps were made, and 4 are left out")])
def test_nothing_to_average(steps, why) -> None:
    model = Steps(5)
    swa = SWA(model, start=4)
    for _ in range(steps):
        model.step()
        swa.update()
    with pytest.warns(UserWarning, match=f"SWA has nothing to average.*{why}.*present weights") as caught:
        found = swa.finish()["w"]
    assert caught[0].filename == __file__
    assert torch.equal(found, model.w)
    assert found.data_ptr() != model.w.data_ptr()
    assert (swa.start, swa.end) == (0, 0)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_decay_out_of_range(decay) -> None:
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        EMA(Steps(1), decay)


@pytest.mark.parametrize("start", [-1, 0.5, math.nan, math.inf])
def test_a_start_that_is_no_number_of_steps(start) -> None:
    with pytest.raises(ValueError, match="start must be a whole number of steps, at least 0"):
        SWA(Steps(1), start)


@kinds
def test_states_that_do_not_fit_are_refused_and_change_nothing(kind) -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        MAKERS[kind](nn.ReLU())
    model, larger = small_model(), nn.Sequential(*small_model(), nn.Linear(2, 2))
    average, other = MAKERS[kind](model), MAKERS[kind](larger)
    for step in range(6):
        for net, each in ((model, average), (larger, other)):
            put(net, step)
            each.update()
    before, decay = average.finish(), EMA(model, 0.123)
    decay.update()
    for wrong, message in [
        (saved(other), "belongs to another model: this one has no 3.bias, 3.weight"),
        (saved(decay), "with decay=0.123, not with" if "ema" in kind else "that of EMA, not of SWA"),
        (saved(SWA(model, 9)), "with start=9, not with" if "swa" in kind else "that of SWA, not of EMA"),
        (saved(SWAD(model)), "that of SWAD"),
        ({**saved(average), "version": 2}, "newer steppe"),
    ]:
        with pytest.raises(ValueError, match=message):
            average.load_state_dict(wrong)
    assert same(average.finish(), before)


@kinds
def test_every_average_has_what_they_share(kind) -> None:
    for average in (MAKERS[kind](small_model()), SWAD(small_model())):
        assert isinstance(average, Average)
    assert repr(MAKERS["swa, start"](small_model())) == "SWA(start=4)"
    assert repr(MAKERS["ema"](small_model())) == "EMA(decay=0.8)"
    assert repr(SWAD(small_model())) == "SWAD(n_converge=3, n_tolerance=6, tolerance_ratio=0.3)"
