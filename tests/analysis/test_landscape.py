"""Loss along lines and in planes against the exact quadratic of a regression, and against weights put in by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from analysis_models import (
    Batches,
    Regression,
    bits,
    data,
    half_square,
    moved_state,
    network,
    quadratic,
    regression_data,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steppe.analysis import Plane, Segment, evaluate, plane, segment

X, Y = regression_data()
LOADER = [(X[:10], Y[:10]), (X[10:], Y[10:])]
GENERATOR = torch.Generator().manual_seed(3)
W1, W2, W3 = (torch.randn(4, generator=GENERATOR, dtype=torch.float64) for _ in range(3))


def states(*weights: Tensor) -> list[dict[str, Tensor]]:
    return [{"weight": w} for w in weights]


@pytest.mark.parametrize("extend", [0.0, 0.5, 3.0])
def test_a_regression_is_a_parabola_along_a_line(extend: float) -> None:
    found = segment(Regression(4), *states(W1, W2), LOADER, 9, extend, loss=half_square)
    assert found.positions[0] == -extend
    assert found.positions[-1] == 1 + extend
    assert len(found.positions) == len(found.loss) == 9
    for t, loss in zip(found.positions, found.loss, strict=True):
        assert loss == pytest.approx(quadratic(X, Y, (1 - t) * W1 + t * W2), rel=1e-11)
    steps = [later - earlier for earlier, later in zip(found.positions, found.positions[1:], strict=False)]
    assert steps == pytest.approx([(1 + 2 * extend) / 8] * 8)
    assert found.distance == pytest.approx((W2 - W1).norm().item(), rel=1e-12)
    assert found.accuracy is None
    assert found.start.loss == pytest.approx(quadratic(X, Y, W1), rel=1e-12)
    assert found.end.loss == pytest.approx(quadratic(X, Y, W2), rel=1e-12)


def test_the_ends_are_the_states_bit_for_bit() -> None:
    model = network()
    one, other = moved_state(model, 1), moved_state(model, 2)
    found = segment(model, one, other, data(), 5)
    direct = []
    for state in (one, other):
        fresh = network()
        fresh.load_state_dict(state)
        direct.append(evaluate(fresh, data()))
    assert (found.start, found.end) == tuple(direct)
    assert (found.loss[0], found.loss[-1]) == (direct[0].loss, direct[1].loss)
    assert found.accuracy is not None
    assert (found.accuracy[0], found.accuracy[-1]) == (direct[0].accuracy, direct[1].accuracy)
    beyond = segment(model, one, other, data(), 4, extend=0.3)
    assert 0.0 not in beyond.positions
    assert (beyond.start, beyond.end) == tuple(direct)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_end_is_exact_however_far_the_start(dtype: torch.dtype) -> None:
    """a + (b − a) is 0 where b is too small beside a to be seen in the difference."""
    model = nn.Linear(6, 3, bias=False, dtype=dtype)
    far, near = {"weight": torch.full((3, 6), 1e30, dtype=dtype)}, {"weight": torch.full((3, 6), 1e-10, dtype=dtype)}
    seen: list[Tensor] = []
    segment(model, far, near, data(8, dtype=dtype), 2, refresh=lambda m: seen.append(m.weight.detach().clone()))
    assert torch.equal(seen[1], near["weight"])
    away = {"weight": 1e30 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)}
    seen.clear()
    plane(model, (far, away, near), data(8, dtype=dtype), 2, refresh=lambda m: seen.append(m.weight.detach().clone()))
    assert torch.equal(seen[2], near["weight"])


def mixed(model: nn.Module, one: dict[str, Tensor], other: dict[str, Tensor], t: float) -> nn.Module:
    """The model between two states, by hand: parameters in float64, statistics no further than the ends."""
    result = copy.deepcopy(model)
    inside = min(max(t, 0.0), 1.0)
    parameters = dict(result.named_parameters())
    state = {}
    for name, value in one.items():
        share = t if name in parameters else inside
        whole = (1 - share) * value.double() + share * other[name].double()
        state[name] = whole.to(value.dtype) if value.is_floating_point() else value
    result.load_state_dict(state)
    return result


def test_statistics_are_mixed_and_never_extrapolated() -> None:
    model = network(dtype=torch.float64)
    one, other = moved_state(model, 1), moved_state(model, 2)
    other["1.num_batches_tracked"] += 17
    other["1.running_var"] /= 50  # beyond the end it would be negative
    batches = data(dtype=torch.float64)
    found = segment(model, one, other, batches, 5, extend=1.0)
    assert found.non_finite == 0
    for t, loss in zip(found.positions, found.loss, strict=True):
        assert loss == pytest.approx(evaluate(mixed(model, one, other, t), batches).loss, rel=1e-10)


def test_counts_are_those_of_the_start() -> None:
    model = network()
    one, other = moved_state(model, 1), moved_state(model, 2)
    one["1.num_batches_tracked"] += 5
    other["1.num_batches_tracked"] += 17
    seen = []
    segment(model, one, other, data(), 3, refresh=lambda m: seen.append(m[1].num_batches_tracked.item()))
    assert seen == [5, 17, 5]  # the start itself, the end itself, what lies between


def test_a_state_may_lack_buffers() -> None:
    model = network()
    names = {name for name, _ in model.named_parameters()}
    one, other = moved_state(model, 1), moved_state(model, 2)
    bare = [{name: value for name, value in state.items() if name in names} for state in (one, other)]
    own = [state | {name: b for name, b in model.named_buffers() if "scratch" not in name} for state in bare]
    assert segment(model, *bare, data(), 3) == segment(model, *own, data(), 3)


def test_the_models_own_state_is_not_overwritten_while_it_is_read() -> None:
    model = network()
    other = moved_state(model, 1)
    snapshot = {name: value.clone() for name, value in model.state_dict().items()}
    expected = segment(model, snapshot, other, data(), 4)
    assert segment(model, model.state_dict(), other, data(), 4) == expected
    assert segment(model, model, other, data(), 4) == expected
    assert segment(model, dict(model.state_dict(keep_vars=True)), other, data(), 4) == expected


def test_files_and_other_models_serve(tmp_path: Path) -> None:
    model = network()
    one, other = moved_state(model, 1), moved_state(model, 2)
    save_file(one, tmp_path / "one.safetensors")
    second = network(4)
    second.load_state_dict(other)
    before = bits(second)
    found = segment(model, tmp_path / "one.safetensors", second, data(), 3)
    assert found == segment(model, one, other, data(), 3)
    assert bits(second) == before


def fresh_statistics(model: nn.Module, batches: Batches) -> None:
    """New running statistics as cumulative means of the batches', as ``torch.optim.swa_utils.update_bn`` has them."""
    torch.optim.swa_utils.update_bn([x for x, _ in batches], model)


def test_statistics_can_be_renewed_at_every_point() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    one, other = moved_state(model, 1), moved_state(model, 2)
    batches, others = data(dtype=torch.float64), data(24, 8, seed=9, dtype=torch.float64)
    before = bits(model)
    found = segment(model, one, other, batches, 3, refresh=others)
    by_function = segment(model, one, other, batches, 3, refresh=lambda m: fresh_statistics(m, others))
    assert bits(model) == before
    for t, loss, same in zip(found.positions, found.loss, by_function.loss, strict=True):
        expected = mixed(model, one, other, t)
        fresh_statistics(expected, others)
        assert loss == pytest.approx(evaluate(expected, batches).loss, rel=1e-10)
        assert same == pytest.approx(loss, rel=1e-10)
    assert found.loss != segment(model, one, other, batches, 3).loss


def test_a_layer_that_does_not_train_keeps_its_statistics_when_they_are_renewed() -> None:
    """As the caller has it: in evaluation mode while the model trains."""
    model = network()
    modes, statistics = [], []

    def watch(m: nn.Module) -> None:
        modes.append([module.training for module in m.modules()])

    expected = [module.training for module in model.modules()]
    segment(model, model, moved_state(model, 1), data(), 2, refresh=watch)
    assert modes == [expected, expected]
    other = moved_state(model, 1)
    segment(
        model, model, other, data(), 2, refresh=data(seed=5), loss=lambda outputs, y: (
            statistics.append((model[1].running_mean.clone(), model[6].running_mean.clone())), outputs[:, 0]
        )[1],
    )  # fmt: skip
    trained, frozen = statistics[-1]
    assert torch.equal(frozen, other["6.running_mean"])
    assert not torch.equal(trained, other["1.running_mean"])


class Shuffled:
    """Batches in another order at each pass, of the global generator."""

    def __init__(self) -> None:
        self.orders: list[list[int]] = []

    def __iter__(self) -> Any:
        batches = data(64, 4)
        order = torch.randperm(len(batches)).tolist()
        self.orders.append(order)
        return iter([batches[i] for i in order])


def test_statistics_are_renewed_from_the_same_batches_at_every_point() -> None:
    model, batches = network(), Shuffled()
    segment(model, model, moved_state(model, 1), data(), 3, refresh=batches)
    assert len(batches.orders) == 3
    assert batches.orders[0] == batches.orders[1] == batches.orders[2]
    with pytest.raises(ValueError, match="gone through once"):
        segment(model, model, moved_state(model, 1), data(), 3, refresh=iter(data()))


def test_a_loss_that_is_not_finite_stays_visible() -> None:
    far = {name: 1e30 * torch.ones_like(value) for name, value in nn.Linear(6, 3).state_dict().items()}
    near = {name: torch.zeros_like(value) for name, value in far.items()}
    found = segment(nn.Linear(6, 3), near, far, data(), 3, loss=lambda out, y: out.square().sum(1))
    assert found.loss[0] == 0
    assert found.loss[1] == found.loss[2] == math.inf
    assert found.non_finite == 2
    assert found.end.non_finite == 30


def basis(w1: Tensor, w2: Tensor, w3: Tensor) -> tuple[Tensor, Tensor]:
    """Gram and Schmidt, on the vectors themselves."""
    u = (w2 - w1) / (w2 - w1).norm()
    v = (w3 - w1) - ((w3 - w1) @ u) * u
    return u, v / v.norm()


@pytest.mark.parametrize("margin", [0.0, 0.2, 2.0])
def test_a_regression_is_a_paraboloid_in_a_plane(margin: float) -> None:
    found = plane(Regression(4), states(W1, W2, W3), LOADER, (5, 4), margin, loss=half_square)
    u, v = basis(W1, W2, W3)
    assert found.loss.shape == (4, 5)
    assert found.accuracy is None
    for j, y in enumerate(found.y):
        for i, x in enumerate(found.x):
            assert found.loss[j, i].item() == pytest.approx(quadratic(X, Y, W1 + x * u + y * v), rel=1e-9)
    expected = [((w - W1) @ u, (w - W1) @ v) for w in (W1, W2, W3)]
    for corner, (x, y) in zip(found.corners, expected, strict=True):
        assert corner == pytest.approx((x.item(), y.item()), abs=1e-12)
    for at, w in zip(found.at, (W1, W2, W3), strict=True):
        assert at.loss == pytest.approx(quadratic(X, Y, w), rel=1e-12)
    across, up = [corner[0] for corner in found.corners], [corner[1] for corner in found.corners]
    for axis, values in ((found.x, across), (found.y, up)):
        extent = max(values) - min(values)
        assert axis[0] == pytest.approx(min(values) - margin * extent, abs=1e-12)
        assert axis[-1] == pytest.approx(max(values) + margin * extent, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_distances_in_the_picture_are_those_between_weights(seed: int) -> None:
    model = network()
    chosen = [moved_state(model, 3 * seed + i) for i in range(3)]
    found = plane(model, chosen, data(8), 2)
    vectors = [torch.cat([state[name].double().flatten() for name, _ in model.named_parameters()]) for state in chosen]
    for i in range(3):
        for j in range(3):
            apart = math.dist(found.corners[i], found.corners[j])
            assert apart == pytest.approx((vectors[i] - vectors[j]).norm().item(), rel=1e-9, abs=1e-12)
    assert found.corners[0] == (0, 0)
    assert found.corners[1][1] == 0
    assert found.corners[2][1] > 0


def test_the_three_are_measured_with_their_own_bits() -> None:
    model = network()
    chosen = [moved_state(model, i) for i in range(3)]
    found = plane(model, chosen, data(), (3, 2))
    for at, state in zip(found.at, chosen, strict=True):
        fresh = network()
        fresh.load_state_dict(state)
        assert evaluate(fresh, data()) == at
    assert found.accuracy is not None
    assert found.accuracy.shape == (2, 3)
    assert repr(found).startswith("Plane(3 × 2 points, loss ")


def test_statistics_in_the_plane_stay_between_the_three() -> None:
    model = network(dtype=torch.float64)
    chosen = [moved_state(model, i) for i in range(3)]
    low = torch.stack([state["1.running_var"] for state in chosen]).amin(0)
    high = torch.stack([state["1.running_var"] for state in chosen]).amax(0)
    seen: list[Tensor] = []
    found = plane(
        model, chosen, data(8, dtype=torch.float64), 4, 3.0, refresh=lambda m: seen.append(m[1].running_var.clone())
    )
    assert len(seen) == 16 + 3
    assert all(((low - 1e-12 <= each) & (each <= high + 1e-12)).all() for each in seen)
    assert found.non_finite == 0
    assert [torch.equal(each, state["1.running_var"]) for each, state in zip(seen, chosen, strict=False)] == [True] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_on_a_line_have_no_plane(dtype: torch.dtype) -> None:
    model = network(dtype=dtype)
    batches = data(8, dtype=dtype)
    one, other = moved_state(model, 1), moved_state(model, 2)
    middle = {name: ((value.double() + other[name].double()) / 2).to(value.dtype) for name, value in one.items()}
    before = bits(model)
    for three in ((one, other, middle), (one, middle, other), (middle, one, other)):
        with pytest.raises(ValueError, match="lie on a line, to within their rounding"):
            plane(model, three, batches)
    for three, pair in (
        ((one, one, other), "w1 and w2"),
        ((one, other, one), "w1 and w3"),
        ((one, other, other), "w2 and w3"),
    ):
        with pytest.raises(ValueError, match=f"{pair} are the same weights"):
            plane(model, three, batches)
    with pytest.raises(ValueError, match="start and end are the same weights"):
        segment(model, one, one, batches)
    assert bits(model) == before


def test_close_weights_far_from_zero_still_span_a_plane() -> None:
    """Steps of 10⁻⁶ at weights of 1, in float64: far above the rounding, far below the weights."""
    start = torch.ones(4, dtype=torch.float64)
    found = plane(Regression(4), states(start, start + 1e-6 * W2, start + 1e-6 * W3), LOADER, 2, loss=half_square)
    assert found.corners[1][0] == pytest.approx(1e-6 * W2.norm().item(), rel=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": 1}, "at least 2 points"),
        ({"extend": -0.1}, "extend must be"),
        ({"extend": math.inf}, "extend must be"),
        ({"end": {"0.weight": torch.zeros(8, 6)}}, "end has no parameter '0.bias'"),
        ({"end": {"module.0.weight": torch.zeros(8, 6)}}, r"\(it has 'module.0.weight', which the model has not\)"),
        ({"start": network().state_dict() | {"8.bias": torch.zeros(2)}}, "start has '8.bias', which the model has not"),
        (
            {"start": network().state_dict() | {"0.bias": torch.zeros(2)}},
            r"'0.bias' has the shape \(2,\) in start, \(8,\)",
        ),
        ({"start": network().state_dict() | {"0.bias": torch.zeros(1)}}, r"'0.bias' has the shape \(1,\) in start"),
        ({"start": network().state_dict() | {"0.bias": torch.full((8,), math.nan)}}, "weights are not finite"),
    ],
)
def test_a_line_that_cannot_be_drawn_is_refused(changes: dict[str, Any], message: str) -> None:
    model = network()
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        segment(model, **{"start": model, "end": moved_state(model, 1), "loader": data(), **changes})
    assert bits(model) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": 1}, "at least 2 points in x and in y"),
        ({"points": (3, 1)}, "at least 2 points in x and in y"),
        ({"points": (3, 3, 3)}, "at least 2 points in x and in y"),
        ({"margin": -1.0}, "margin must be"),
        ({"states": ()}, "three sets of weights"),
        ({"states": network()}, "three sets of weights"),
        ({"states": (network(), network(1), {"w": torch.zeros(2)})}, "w3 has no parameter '0.weight'"),
    ],
)
def test_a_plane_that_cannot_be_drawn_is_refused(changes: dict[str, Any], message: str) -> None:
    model = network()
    before = bits(model)
    chosen = (model, moved_state(model, 1), moved_state(model, 2))
    with pytest.raises(ValueError, match=message):
        plane(model, **{"states": chosen, "loader": data(), **changes})
    assert bits(model) == before


def test_a_buffer_that_repeats_one_number_stays() -> None:
    class Repeating(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            self.register_buffer("mask", torch.ones(1).expand(5))

    model = Repeating()
    other = moved_state(model, 1)
    segment(model, model, other, data(), 2)
    assert torch.equal(model.mask, torch.ones(5))


def test_extra_state_of_modules_is_passed_over() -> None:
    model = network()
    extra = moved_state(model, 1) | {"0._extra_state": {"anything": 1}}
    assert segment(model, model, extra, data(), 2) == segment(model, model, moved_state(model, 1), data(), 2)


def test_their_words() -> None:
    found = segment(Regression(4), *states(W1, W2), LOADER, 3, loss=half_square)
    assert repr(found).startswith("Segment(3 points over a distance of ")
    highest = max(range(3), key=lambda i: found.loss[i])
    assert f"at most {found.loss[highest]:.6g} at {found.positions[highest]:.3g})" in repr(found)
    assert isinstance(found, Segment)
    assert isinstance(plane(Regression(4), states(W1, W2, W3), LOADER, 2, loss=half_square), Plane)


def test_another_loss_is_taken_along() -> None:
    model = network()
    other = moved_state(model, 1)
    found = segment(model, model, other, data(), 2, loss=lambda out, y: 2 * cross_entropy(out, y, reduction="none"))
    plain = segment(model, model, other, data(), 2)
    assert found.loss == pytest.approx([2 * loss for loss in plain.loss], rel=1e-9)
    assert found.accuracy == plain.accuracy
