"""Linear CKA against its definition with centring matrices and sums over indices."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from analysis_models import Batches, data, moved_state, network
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from steppe.analysis import cka, linear_cka, similarity
from steppe.errors import SteppeError


def features(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + seed


def by_definition(x: Tensor, y: Tensor) -> float:
    """tr(KHLH) of Kornblith et al. 2019, with H = I − 11ᵀ/n."""
    n = len(x)
    h = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        return torch.trace(a @ a.T @ h @ b @ b.T @ h)

    return (hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).item()


def hsic_1(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, equation 5, as sums over indices."""
    n = len(x)
    k, l = (x @ x.T).tolist(), (y @ y.T).tolist()  # noqa: E741
    for i in range(n):
        k[i][i] = l[i][i] = 0.0
    trace = sum(k[i][j] * l[j][i] for i in range(n) for j in range(n))
    total_k, total_l = sum(map(sum, k)), sum(map(sum, l))
    between = sum(k[i][j] * l[j][m] for i in range(n) for j in range(n) for m in range(n))
    return (trace + total_k * total_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * between) / (n * (n - 3))


def unbiased(batches: list[tuple[Tensor, Tensor]]) -> float:
    xy, xx, yy = (
        sum(len(x) * hsic_1(*pair) for x, y in batches for pair in [{"xy": (x, y), "xx": (x, x), "yy": (y, y)}[which]])
        for which in ("xy", "xx", "yy")
    )
    return xy / math.sqrt(xx * yy)


@pytest.mark.parametrize(("n", "widths"), [(9, (3, 5)), (5, (12, 7)), (12, (2, 40)), (4, (3, 3))])
def test_both_estimates_are_as_defined(n: int, widths: tuple[int, int]) -> None:
    x, y = features(n, widths[0], 1), features(n, widths[1], 2)
    y[:, 0] += 2 * x[:, 0]
    assert linear_cka(x, y) == pytest.approx(by_definition(x, y), abs=1e-12)
    assert linear_cka(x, y, unbiased=True) == pytest.approx(unbiased([(x, y)]), abs=1e-11)


@given(
    n=st.integers(5, 12),
    width=st.integers(1, 8),
    factor=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
    is_unbiased=st.booleans(),
)
def test_rotations_scales_and_shifts_change_nothing(
    n: int, width: int, factor: float, seed: int, is_unbiased: bool
) -> None:
    x, y = features(n, width, seed), features(n, 4, seed + 1)
    turned, _ = torch.linalg.qr(features(width, width, seed + 2))
    expected = linear_cka(x, y, unbiased=is_unbiased)
    moved = factor * x @ turned + 5
    assert linear_cka(moved, y, unbiased=is_unbiased) == pytest.approx(expected, abs=1e-7)
    assert linear_cka(y, moved, unbiased=is_unbiased) == pytest.approx(expected, abs=1e-7)
    assert linear_cka(x, moved, unbiased=is_unbiased) == pytest.approx(1, abs=1e-7)
    assert -1 <= expected <= 1
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert linear_cka(x[order], y[order], unbiased=is_unbiased) == pytest.approx(expected, abs=1e-9)


def test_independent_features_of_many_dimensions_are_alike_only_with_the_bias() -> None:
    x, y = features(20, 400, 1), features(20, 400, 2)
    assert linear_cka(x, y) > 0.9
    assert abs(linear_cka(x, y, unbiased=True)) < 0.1


def test_half_precision_far_from_zero_is_centred_in_float64() -> None:
    x = (100 + features(30, 5)).bfloat16()
    y = (100 + features(30, 5, 1)).half()
    assert linear_cka(x, y) == pytest.approx(by_definition(x.double(), y.double()), abs=1e-9)


def test_further_dimensions_are_features() -> None:
    x, y = features(8, 24), features(8, 6, 1)
    assert linear_cka(x.view(8, 2, 3, 4), y.view(8, 3, 2)) == linear_cka(x, y)
    assert linear_cka(x[:, 0], y) == linear_cka(x[:, :1], y)


@pytest.mark.parametrize("is_unbiased", [False, True])
def test_features_that_do_not_vary_have_no_similarity(is_unbiased: bool) -> None:
    still = torch.full((6, 3), 0.1, dtype=torch.float64)
    assert math.isnan(linear_cka(still, features(6, 3), unbiased=is_unbiased))
    assert math.isnan(linear_cka(still, still, unbiased=is_unbiased))
    # The corners of a simplex are all equally far apart: HSIC₁ of them with themselves is 0, but for rounding.
    corners = 3.7 * torch.eye(6, dtype=torch.float64) @ torch.linalg.qr(features(6, 6))[0]
    assert math.isnan(linear_cka(corners, corners, unbiased=True))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="the same samples"):
        linear_cka(features(5, 2), features(6, 2))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        linear_cka(features(1, 2), features(1, 2))
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        linear_cka(features(3, 2), features(3, 2), unbiased=True)


def linear(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)).double()


def labelled(x: Tensor, *pick: Any) -> Batches:
    return [(x[each], torch.zeros(len(x[each]), dtype=torch.int64)) for each in pick]


def test_one_batch_of_everything_is_the_unbiased_value() -> None:
    a, b, x = linear(5, 0), linear(8, 1), features(14, 6)
    found = cka(a, b, labelled(x, slice(None)), ["0", "1", "2:input", "2"], layers_b=["1", "2"])
    inside_a = [a[0](x), a[1](a[0](x)), a[1](a[0](x)), a(x)]
    inside_b = [b[1](b[0](x)), b(x)]
    for i, of_a in enumerate(inside_a):
        for j, of_b in enumerate(inside_b):
            assert found.values[i, j].item() == pytest.approx(unbiased([(of_a.detach(), of_b.detach())]), abs=1e-10)
            assert found.values[i, j].item() == pytest.approx(linear_cka(of_a, of_b, unbiased=True), abs=1e-10)
    assert (found.layers_a, found.layers_b) == (("0", "1", "2:input", "2"), ("1", "2"))
    assert (found.samples, found.batches, found.left_out) == (14, 1, 0)


def test_the_estimate_from_mini_batches_is_unbiased() -> None:
    """Over all choices of five of eight samples HSIC₁ averages to that of the eight: no bias, whatever they are."""
    a, b, x = linear(5, 0), linear(8, 1), features(8, 6)
    whole = cka(a, b, labelled(x, slice(None)))
    parts = cka(a, b, labelled(x, *(list(chosen) for chosen in combinations(range(8), 5))))
    assert parts.values.item() == pytest.approx(whole.values.item(), abs=1e-11)
    assert parts.batches == math.comb(8, 5)


def test_batches_count_by_their_samples_and_tiny_ones_not_at_all() -> None:
    a, b, x = linear(5, 0), linear(8, 1), features(20, 6)
    batches = labelled(x, slice(0, 8), slice(8, 13), slice(13, 17), slice(17, 20))
    found = cka(a, b, batches)
    pairs = [(a[1](a[0](x)).detach(), b[1](b[0](x)).detach()) for x, _ in batches[:3]]
    assert found.values.item() == pytest.approx(unbiased(pairs), abs=1e-10)
    assert (found.samples, found.batches, found.left_out) == (17, 3, 3)
    with pytest.raises(ValueError, match="no batch of at least four samples"):
        cka(a, b, batches[3:])


def test_a_model_is_like_itself_and_its_layers_are_told_apart() -> None:
    model = network(dtype=torch.float64)
    found = cka(model, model, data(dtype=torch.float64), ["0", "2", "5"])
    assert torch.allclose(found.values.diagonal(), torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.values, found.values.T, atol=1e-12)
    assert found.values[0, 2] < 0.999
    again = cka(model, network(dtype=torch.float64), data(dtype=torch.float64), ["0", "2", "5"])
    assert torch.allclose(found.values, again.values, atol=1e-12)


def test_one_model_with_two_states_is_two_models() -> None:
    model = network(dtype=torch.float64)
    state, other = moved_state(model, 1), moved_state(model, 2)
    models = [network(dtype=torch.float64) for _ in range(2)]
    for each, weights in zip(models, (state, other), strict=True):
        each.load_state_dict(weights)
    layers, batches = ["0", "2", "7:input"], data(dtype=torch.float64)
    expected = cka(*models, batches, layers).values
    assert torch.equal(cka(model, model, batches, layers, state_a=state, state_b=other).values, expected)
    assert torch.equal(cka(model, models[1], batches, layers, state_a=state).values, expected)
    assert torch.equal(cka(models[0], model, batches, layers, state_b=other).values, expected)
    assert torch.equal(cka(model, model, batches, layers, state_a=models[0], state_b=other).values, expected)
    # Where one state is left out, it is the weights that the model has: here while the other's stand in their place.
    assert torch.equal(cka(models[0], models[0], batches, layers, state_b=other).values, expected)
    assert torch.equal(cka(models[1], models[1], batches, layers, state_a=state).values, expected)


def test_a_layer_that_works_in_place_does_not_spoil_the_one_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 3)).double()
    x = features(12, 6)
    found = cka(model, model, labelled(x, slice(None)), ["0", "1"]).values
    before = model[0](x).detach()
    assert found[0, 1].item() == pytest.approx(linear_cka(before, before.relu(), unbiased=True), abs=1e-10)
    assert found[0, 1] < 0.999


def test_large_features_are_worked_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, batches = linear(50, 0), linear(30, 1), labelled(features(12, 6), slice(0, 7), slice(7, 12))
    expected = cka(a, b, batches, ["0", "1"]).values
    monkeypatch.setattr(similarity, "BLOCK", 40)
    assert torch.allclose(cka(a, b, batches, ["0", "1"]).values, expected, atol=1e-12)


class Branches(nn.Module):
    """Its last linear layer in the order of registration is not the last that is called, and one never is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Linear(6, 8)
        self.twice = nn.Tanh()
        self.spare = nn.Linear(6, 2)
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.body(x)))
        return self.head(input=self.pair(x)["first"][0])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"first": (x, x[:1]), "second": None}


def test_the_default_is_what_goes_into_the_linear_layer_that_is_called_last() -> None:
    torch.manual_seed(0)
    model = Branches().double()
    x = features(10, 6)
    found = cka(model, model, labelled(x, slice(None)))
    assert found.layers_a == found.layers_b == ("head:input",)
    found = cka(model, model, labelled(x, slice(None)), ["head:input", "twice", "pair", "body"])
    # The last of two calls, and the first of several tensors: the same features.
    assert torch.allclose(found.values[:3, :3], torch.ones(3, 3, dtype=torch.float64), atol=1e-12)
    assert found.values[0, 3] < 0.9999
    assert repr(cka(model, model, labelled(x, slice(None)))).startswith("CKA(1.0000 at head:input, 10 samples in 1")
    assert "CKA(4 × 4 layers, from" in repr(found)


def test_layers_that_cannot_be_compared_are_named() -> None:
    model, batches = Branches(), [(torch.randn(8, 6), torch.zeros(8, dtype=torch.int64))]
    with pytest.raises(SteppeError, match="unknown layer 'haed'; did you mean 'head'"):
        cka(model, model, batches, ["haed"])
    with pytest.raises(ValueError, match="'spare' was never called"):
        cka(model, model, batches, ["spare"])
    with pytest.raises(ValueError, match=r"calls no nn\.Linear"):
        cka(nn.Identity(), nn.Identity(), batches)
    with pytest.raises(ValueError, match="layers is empty"):
        cka(model, model, batches, [])

    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.T

    with pytest.raises(ValueError, match=r"'0' has the shape \(6, 8\) for 8 samples"):
        cka(nn.Sequential(Turned()), nn.Sequential(Turned()), batches, ["0"])


def test_a_dead_layer_is_nan_and_the_others_are_measured() -> None:
    a, x = linear(5, 0), features(12, 6)
    with torch.no_grad():
        a[0].weight.zero_()
    found = cka(a, linear(5, 1), labelled(x, slice(0, 6), slice(6, 12)), ["0"], layers_b=["0", "2"])
    assert found.values.isnan().all()
    alive = cka(linear(5, 2), linear(5, 1), labelled(x, slice(0, 6), slice(6, 12)), ["0"], layers_b=["0", "2"])
    assert alive.values.isfinite().all()
