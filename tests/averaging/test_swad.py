"""SWAD against a transcription of its rule; and what it promises of precision, memory, saving and odd models."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import deque
from typing import NamedTuple

import pytest
import torch
from courses import Steps, follow, put, same, saved, shares, small_model, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from test_memory import Live, large_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steppe.averaging import EMA, SWAD, Average
from steppe.averaging.average import empty_like
from steppe.errors import SteppeError

# --- the rule ---


class Outcome(NamedTuple):
    added: list[int]
    """Segments, in the order in which they were added; the one returned where none was."""
    converged: int | None
    threshold: float | None
    dead: bool


def rule(losses: list[float], n_converge: int, n_tolerance: int, ratio: float) -> Outcome:
    """METHODS.md, section 2, word by word; segments are numbers from 0."""
    c: deque[int] = deque(maxlen=n_converge)
    s: deque[int] = deque(maxlen=n_tolerance)
    converged, threshold, dead, added = None, 0.0, False, []
    for number in range(len(losses)):
        if dead:
            continue
        c.append(number)
        s.append(number)
        if converged is None:
            window = [losses[i] for i in c]
            if len(c) == n_converge and all(window[0] <= loss for loss in window):
                converged, first = c[0], c[0]
                threshold = (1 + ratio) * statistics.mean(window)
                if n_tolerance > n_converge:
                    q = list(s)[: n_tolerance - n_converge + 1]
                    j = 0
                    for index, segment in enumerate(q):
                        if losses[segment] > threshold:
                            j = 1 + index
                    added += q[j + 1 :]
                if n_tolerance < n_converge:
                    added += [c[i] for i in range(1, n_converge - n_tolerance + 1)]
        elif s[0] >= converged:
            if all(losses[i] > threshold for i in s):
                dead = True
            else:
                added.append(s[0])
    if converged is None:
        return Outcome([len(losses) - 1], None, None, False)
    if not dead:
        s.popleft()
        while s and min(losses[i] for i in s) <= threshold:
            added.append(s.popleft())
    return Outcome(added or [first], converged, threshold, dead)


some_losses = st.lists(st.floats(0.1, 2.0), min_size=1, max_size=20)
few_losses = st.lists(st.sampled_from([0.25, 0.5, 0.625, 0.75, 1.0]), min_size=1, max_size=20)  # ties
valleys = st.tuples(some_losses, some_losses).map(lambda pair: sorted(pair[0], reverse=True) + sorted(pair[1]))
ratios = st.one_of(st.sampled_from([0.0, 0.25, 0.3]), st.floats(0.0, 2.0))


@settings(max_examples=400)
@given(
    losses=st.one_of(some_losses, few_losses, valleys),
    n_converge=st.integers(1, 5),
    n_tolerance=st.integers(1, 8),
    ratio=ratios,
    data=st.data(),
)
def test_it_is_the_rule(losses, n_converge, n_tolerance, ratio, data) -> None:
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=len(losses), max_size=len(losses)))
    after = data.draw(st.integers(0, 2))  # steps that no evaluation follows
    model = Steps(sum(lengths) + after)
    swad = SWAD(model, n_converge, n_tolerance, ratio)
    follow(swad, model, losses, lengths)
    for _ in range(after):
        model.step()
        swad.update()
    expected, ends = rule(losses, n_converge, n_tolerance, ratio), torch.tensor(lengths).cumsum(0).tolist()
    assert swad.converged == (None if expected.converged is None else ends[expected.converged])
    assert (swad.threshold, swad.dead) == (expected.threshold, expected.dead)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = swad.finish()["w"]
    assert len(caught) == (expected.converged is None)
    wanted = torch.cat([shares(expected.added, lengths), torch.zeros(after, dtype=torch.float64)])
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-15)
    first, last = min(expected.added), max(expected.added)
    assert (swad.start, swad.end) == (ends[first] - lengths[first] + 1, ends[last])


CASES = {
    "a valley that ends": ((2, 2, 0.3), [1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.1], 2, True, [2, 3]),
    "a valley that goes on": ((2, 2, 0.3), [1.0, 0.5, 0.6, 0.7, 0.71], 2, False, [2, 3, 4]),
    "segments added twice": ((3, 6, 0.3), [0.5, 0.6, 0.7, 0.6, 0.6], 1, False, [1, 2, 0, 0, 1, 2, 3, 4]),
    "what precedes is too high": ((2, 5, 0.3), [2.0, 1.0, 0.9, 0.5, *[0.6] * 4], 4, False, [3, 4, 5, 6, 7]),
    "Q[j] is left out": ((2, 5, 0.7), [2.0, 1.0, 0.9, 0.5, *[0.6] * 4], 4, False, [3, 3, 4, 5, 6, 7]),
    "none too high": ((2, 5, 3.0), [2.0, 1.0, 0.9, 0.5, *[0.6] * 4], 4, False, [1, 2, 3, 3, 4, 5, 6, 7]),
    "the end comes soon": ((2, 5, 0.3), [2.0, 1.0, 0.9, 0.5, 0.6], 4, False, [1, 2, 3, 4]),
    "a short tolerance": ((4, 2, 0.3), [0.9, 0.5, 0.6, 0.7, 0.8], 2, False, [2, 3, 4]),
    "one and one": ((1, 1, 0.5), [1.0, 1.4, 1.5, 1.6, 0.2], 1, True, [1, 2]),
    "a low loss soon shows": ((1, 2, 0.0), [1.0, 2.0, 0.5, 3.0, 4.0], 1, True, [0, 1, 2]),
    "nothing is ever added": ((2, 2, 0.0), [0.5, 0.6], 1, False, [0]),
    "the last ones are too high": ((1, 3, 0.5), [1.0, 1.2, 1.3, 1.4, 9.0, 9.0], 1, False, [0, 0, 1, 2, 3]),
}
"""By hand: the numbers; the losses, a step each; the step of convergence; whether the valley is dead; what is added."""


@pytest.mark.parametrize("case", CASES)
def test_by_hand(case) -> None:
    numbers, losses, converged, dead, added = CASES[case]
    model = Steps(len(losses))
    swad = SWAD(model, *numbers)
    follow(swad, model, losses, [1] * len(losses))
    assert (swad.converged, swad.dead) == (converged, dead)
    torch.testing.assert_close(swad.finish()["w"], shares(added, [1] * len(losses)), rtol=1e-14, atol=0)
    assert (swad.start, swad.end) == (min(added) + 1, max(added) + 1)


def test_equal_losses_never_exceed_a_threshold_without_tolerance() -> None:
    """0.1 + 0.1 + … is rounded; their mean is 0.1 all the same."""
    for loss in (0.1, 0.7, 1 / 3):
        model = Steps(30)
        swad = SWAD(model, 7, 3, 0.0)
        follow(swad, model, [loss] * 30, [1] * 30)
        assert swad.threshold == loss
        assert not swad.dead
        swad.finish()
        assert swad.end == 30


# --- the end ---


def test_finishing_changes_nothing() -> None:
    losses, lengths = [0.9, 0.5, 0.6, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0], [2] * 9
    model, undisturbed = Steps(18), Steps(18)
    swad, other = SWAD(model, 2, 3), SWAD(undisturbed, 2, 3)
    follow(other, undisturbed, losses, lengths)
    for number, loss in enumerate(losses):
        follow(swad, model, [loss], [2])
        before = model.w.detach().clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, second = swad.finish(), swad.finish()
        assert same(first, second)
        assert torch.equal(model.w, before)
        first["w"].fill_(7)  # the caller's own
        assert (swad.converged is None) == (number < 2)
    assert swad.dead
    assert same(swad.finish(), other.finish())


def test_without_convergence_it_is_the_last_segment() -> None:
    model = Steps(7)
    swad = SWAD(model)
    follow(swad, model, [3.0, 2.0, 1.0], [2, 2, 2])
    model.step()
    swad.update()
    with pytest.warns(UserWarning, match=r"not converged; .*last segment \(steps 5 to 6\)") as caught:
        found = swad.finish()["w"]
    assert caught[0].filename == __file__
    assert found.tolist() == [0, 0, 0, 0, 0.5, 0.5, 0]
    assert (swad.start, swad.end, swad.converged, swad.threshold) == (5, 6, None, None)


def test_without_an_evaluation_it_is_the_mean_of_all_steps() -> None:
    model = Steps(4)
    swad = SWAD(model)
    for _ in range(4):
        model.step()
        swad.update()
    with pytest.warns(UserWarning, match=r"segment\(\) was never called.*mean of all 4 steps"):
        assert swad.finish()["w"].tolist() == [0.25] * 4
    assert (swad.start, swad.end) == (1, 4)


def test_without_a_step_it_is_the_present_weights() -> None:
    model = Steps(2)
    swad = SWAD(model)
    model.step()
    with pytest.warns(UserWarning, match="present weights"):
        found = swad.finish()["w"]
    model.step()
    assert found.tolist() == [1, 0]
    assert (swad.start, swad.end) == (0, 0)


# --- bad input ---


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_a_loss_that_is_not_finite_is_refused(loss) -> None:
    model = Steps(3)
    swad = SWAD(model, 1, 1)
    follow(swad, model, [1.0], [1])
    model.step()
    swad.update()
    with pytest.raises(SteppeError, match=r"validation loss after step 2 is (nan|inf|-inf).*learning rate"):
        swad.segment(loss)
    swad.segment(1.1)  # as if it had not been asked
    assert swad.finish()["w"].tolist() == [0, 1, 0]


def test_a_segment_without_steps_is_refused() -> None:
    model = Steps(3)
    swad = SWAD(model, 1, 1, 0.0)
    with pytest.raises(RuntimeError, match=r"update\(\) after each"):
        swad.segment(1.0)
    follow(swad, model, [1.0, 2.0], [1, 1])
    assert swad.dead
    with pytest.raises(RuntimeError, match=r"update\(\) after each"):
        swad.segment(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_converge": 0}, "n_converge must be a whole number of at least 1, got 0"),
        ({"n_tolerance": 0}, "n_tolerance must be"),
        ({"n_tolerance": 2.5}, "n_tolerance must be a whole number"),
        ({"n_converge": math.nan}, "n_converge must be"),
        ({"n_converge": math.inf}, "n_converge must be"),
        ({"tolerance_ratio": -0.1}, "tolerance_ratio must be finite and at least 0, got -0.1"),
        ({"tolerance_ratio": math.nan}, "tolerance_ratio must be"),
        ({"tolerance_ratio": math.inf}, "tolerance_ratio must be"),
    ],
)
def test_numbers_out_of_range(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        SWAD(Steps(1), **arguments)


def test_a_model_without_parameters() -> None:
    with pytest.raises(ValueError, match="nothing to average: ReLU"):
        SWAD(nn.ReLU())


def test_parameters_that_are_not_what_they_were() -> None:
    model = Steps(3)
    swad = SWAD(model)
    model.step()
    swad.update()
    model.w = nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError, match="not those that averaging began with"):
        swad.update()


# --- precision ---


def test_half_precision_is_averaged_in_float32() -> None:
    """1 + 2^-7 is the next number after 1 in bfloat16: a running mean in it would not move from 1."""
    model = nn.Linear(2, 2).bfloat16()
    swad = SWAD(model, 1, 1)
    for step in range(300):
        nn.init.constant_(model.weight, 1 + (step % 3 == 0) * 2**-7)
        nn.init.constant_(model.bias, 3 * 2**-9)
        swad.update()
    mean = swad.state_dict()["weights"]["running"]
    assert mean["weight"].dtype == torch.float32
    torch.testing.assert_close(mean["weight"], torch.full((2, 2), 1 + 2**-7 / 3), rtol=1e-6, atol=0)
    swad.segment(1.0)
    found = swad.finish()
    assert found["weight"].dtype == found["bias"].dtype == torch.bfloat16
    assert torch.equal(found["bias"], model.bias)


def test_the_rounding_of_a_mean_is_what_is_documented() -> None:
    steps = 2000
    model = nn.Linear(64, 8, bias=False)
    swad, exact = SWAD(model), torch.zeros(8, 64, dtype=torch.float64)
    for step in range(steps):
        put(model, step)
        model.weight.data.add_(1.0)
        exact += model.weight.detach().double() / steps
        swad.update()
    error = (swad.state_dict()["weights"]["running"]["weight"].double() - exact) / exact
    unit = 2.0**-24  # of rounding to float32
    assert error.abs().max() < steps / 2 * unit
    assert 0.1 < error.square().mean().sqrt() / (math.sqrt(steps / 3) * unit) < 2


def test_what_does_not_move_stays_to_the_bit() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("0.")}
    swad = SWAD(model, 2, 3)
    for step in range(21):
        with torch.no_grad():
            model[2].weight.normal_()
        swad.update()
        if step % 3 == 2:
            swad.segment(1.0)
    found = swad.finish()
    assert all(torch.equal(found[name], tensor) for name, tensor in frozen.items())
    assert not torch.equal(found["2.weight"], model[2].weight)


# --- models ---


class Odd(nn.Module):
    """Tied weights, a frozen layer, complex, integer and 8-bit parameters, buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.codes = nn.Parameter(torch.arange(4), requires_grad=False)
        self.eighth = nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def test_tied_frozen_complex_and_integer_parameters_and_buffers() -> None:
    model = Odd()
    swad = SWAD(model, 1, 1)
    for number in range(4):
        with torch.no_grad():
            model.embedding.weight.fill_(number)
            model.phase.fill_(1j * number)
            model.codes.fill_(number)
            model.norm.running_mean.fill_(number)
            model.norm.num_batches_tracked.fill_(number)
            model.seen.fill_(number == 3)
        swad.update()
    swad.segment(1.0)
    names = set(swad.state_dict()["weights"]["average"])
    assert names == {"embedding.weight", "frozen.weight", "frozen.bias", "phase", "norm.weight", "norm.bias"}
    found = swad.finish()
    assert found.keys() == model.state_dict().keys()
    assert all(not tensor.requires_grad for tensor in found.values())
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()  # what was returned is no part of the model
    model.load_state_dict(found)
    assert model.head.weight is model.embedding.weight
    assert (model.embedding.weight == 1.5).all()
    assert (model.phase == 1.5j).all()
    assert (model.eighth.float() == 1).all()
    assert (model.codes == 3).all()  # what cannot be averaged, and all buffers, as they were at the end
    assert (model.norm.running_mean == 3).all()
    assert model.norm.num_batches_tracked == 3
    assert model.seen.all()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "wrapped"])
def test_the_result_loads_into_the_model_as_it_was_given(wrap) -> None:
    bare, wrapped = small_model(), wrap(small_model())
    averages = [SWAD(bare, 1, 1), SWAD(wrapped, 1, 1)]
    for step in range(3):
        for model, average in zip((bare, wrapped), averages, strict=True):
            put(model, step)
            average.update()
    for average in averages:
        average.segment(1.0)
    wrapped.load_state_dict(averages[1].finish())
    bare.load_state_dict(averages[0].finish())
    assert all(map(torch.equal, bare.parameters(), wrapped.parameters()))
    if wrap is torch.compile:  # a checkpoint has the names of the bare model
        averages[1].load_state_dict(saved(averages[0]))


def test_a_model_that_does_not_save_what_it_trains() -> None:
    class Half(nn.Linear):
        def state_dict(self, **options):
            return {name: value for name, value in super().state_dict(**options).items() if name != "weight"}

    model = Half(2, 2)
    swad = SWAD(model, 1, 1)
    swad.update()
    swad.segment(1.0)
    with pytest.raises(RuntimeError, match=r"state_dict\(\) of Half does not hold weight"):
        swad.finish()
    model.weight.requires_grad_(False)  # an adapter saves what is trained, and may leave out the rest
    assert swad.finish().keys() == {"bias"}


# --- saving ---

LOSSES = [0.9, 0.6, 0.5, 0.55, 0.6, 0.52, 0.6, 0.7, 0.9, 0.9, 0.9]


@pytest.mark.parametrize(("n_converge", "n_tolerance"), [(2, 4), (4, 2), (3, 3)])
def test_resuming_at_every_step_is_bit_identical(n_converge, n_tolerance) -> None:
    def train(swad: SWAD, model: nn.Module, begin: int, states: list | None = None) -> dict[str, Tensor]:
        for step in range(begin, 2 * len(LOSSES)):
            if states is not None:
                states.append(saved(swad))
            put(model, step)
            swad.update()
            if step % 2:
                swad.segment(LOSSES[step // 2])
        return weights(swad.finish())

    model, states = small_model(), []
    undisturbed = SWAD(model, n_converge, n_tolerance)
    expected = train(undisturbed, model, 0, states)
    assert undisturbed.dead
    for begin, state in enumerate(states):
        other = small_model(seed=begin)
        resumed = SWAD(other, n_converge, n_tolerance)
        put(other, 1000)
        resumed.update()  # what it was before does not matter
        resumed.load_state_dict(state)
        assert same(train(resumed, other, begin), expected), begin
        assert all(
            getattr(resumed, name) == getattr(undisturbed, name)
            for name in ("converged", "threshold", "dead", "start", "end")
        )


def trained(model: nn.Module, average: Average) -> dict:
    for step in range(3):
        put(model, step)
        average.update()
        average.segment(1.0)
    return saved(average)


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model = small_model()
    swad = SWAD(model, 2, 3)
    state = trained(model, swad)
    before = swad.finish()
    smaller, larger, other = nn.Sequential(model[0]), nn.Sequential(*model, nn.Linear(2, 2)), small_model()
    other[2] = nn.Linear(4, 3)
    refused = [
        (trained(smaller, SWAD(smaller, 2, 3)), r"nothing for the parameter '1\.weight'"),
        (trained(larger, SWAD(larger, 2, 3)), r"another model: this one has no 3\.bias, 3\.weight"),
        (trained(other, SWAD(other, 2, 3)), r"has the shape \(3, 4\)"),
        (trained(model, SWAD(model, 2, 4)), r"with n_converge=2, n_tolerance=4.*not with n_converge=2, n_tolerance=3"),
        (trained(model, EMA(model)), "that of EMA, not of SWAD"),
        ({**state, "version": 2}, "newer steppe"),
        ({**state, "weights": {}}, "lacks the weights of 'average'"),
        (torch.optim.SGD(model.parameters(), lr=0.1).state_dict(), "that of something else, not of SWAD"),
    ]
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            swad.load_state_dict(wrong)
    put(model, 2)
    assert same(swad.finish(), before)


# --- memory, devices ---


@pytest.mark.parametrize(("n_converge", "n_tolerance"), [(1, 1), (2, 4), (4, 2)])
@pytest.mark.parametrize("losses", [[9.0] + [1.0] * 11, [float(12 - i) for i in range(12)]], ids=["valley", "slope"])
def test_memory_is_the_longer_queue_and_two(n_converge, n_tolerance, losses) -> None:
    model = large_model(width=64)
    queue = max(n_converge, n_tolerance)
    with Live() as live:
        for p in model.parameters():
            live.note(p)
        copy, swad = live.now, SWAD(model, n_converge, n_tolerance, device="cpu")
        for loss in losses:
            for _ in range(2):
                swad.update()
            swad.segment(loss)
        converges = swad.converged is not None
        assert converges == (n_converge == 1 or losses[-1] == losses[1])
        assert live.peak == copy * (1 + queue + 1 + converges)  # the weights themselves are one
        assert live.now == copy * (1 + (n_tolerance if converges else queue) + 1 + converges)
        live.peak = live.now
        before = live.now
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = swad.finish()
        assert live.peak - before <= copy * 1.2  # the result; one parameter at a time beside it
        assert len(found) == 8
        del found
        assert live.now == before


@pytest.mark.parametrize(("n_converge", "n_tolerance"), [(1, 1), (2, 4), (4, 2)])
def test_what_an_evicted_segment_leaves_is_used_again(n_converge, n_tolerance, monkeypatch) -> None:
    made: list[Tensor] = []

    def counted(*arguments) -> Tensor:
        made.append(empty_like(*arguments))
        return made[-1]

    monkeypatch.setattr("steppe.averaging.swad.empty_like", counted)
    model = Steps(40)
    swad = SWAD(model, n_converge, n_tolerance, 1.0)
    follow(swad, model, [3.0, 2.0, *[1.0] * 18], [2] * 20)
    assert swad.converged is not None
    assert len(made) == max(n_converge, n_tolerance) + 1


def test_a_dead_valley_keeps_the_average_only() -> None:
    model = large_model(width=64)
    swad = SWAD(model, 1, 3, 0.0)
    with Live() as live:
        for p in model.parameters():
            live.note(p)
        copy = live.now
        for loss in (1.0, 2.0, 2.0, 2.0, 2.0):
            swad.update()
            swad.segment(loss)
        assert swad.dead
        assert live.now == 2 * copy


class Moves(TorchDispatchMode):
    """What was called with, or gave, tensors on several devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            self.seen.append(function._schema.name)
        return result


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_step_does_not_wait_for_an_accelerator(device) -> None:
    """Tensors without values: what the host would read raises. Only an evaluation moves anything, and only if asked."""
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(3, 3, device="cuda"), nn.Linear(3, 3, device="cuda", dtype=torch.bfloat16))
        swad = SWAD(model, 1, 2, device=device)
        for _ in range(5):
            with Moves() as of_step:
                swad.update()
                swad.update()
            with Moves() as of_evaluation:
                swad.segment(1.0)
            assert of_step.seen == []
            moved = [name for name in of_evaluation.seen if name != "aten::empty_like"]
            assert moved == ([] if device is None else ["aten::_foreach_copy_"])
        state = swad.state_dict()["weights"]
        places = {key: tensors["0.weight"].device.type for key, tensors in state.items()}
        assert set(places) == {"average", "segment 0", "segment 1"}
        assert set(places.values()) == {device or "cuda"}
        assert all(tensor.device.type == "cuda" for tensor in swad.finish().values())
