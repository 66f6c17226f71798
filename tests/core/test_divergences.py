"""The divergences: against the definitions in float64, their properties, and what they keep of small differences."""

from __future__ import annotations

import math

import pytest
import torch
from divergence_cases import ADDITIVE, ALL, OF_SOFTMAX, SCALES, SEEDS, SHAPES, logits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from steppe.errors import SteppeError
from steppe.trust import (
    KL,
    L2,
    MMD,
    Additive,
    Divergence,
    Renyi,
    ReverseKL,
    SymmetricKL,
    divergence,
)


def definition(which: Additive, current: Tensor, reference: Tensor) -> Tensor:
    """The definition of each row, in float64, from other code than the package's."""
    p, q = Categorical(logits=reference.double()), Categorical(logits=current.double())
    if isinstance(which, KL):
        return kl_divergence(p, q)
    if isinstance(which, ReverseKL):
        return kl_divergence(q, p)
    if isinstance(which, SymmetricKL):
        return kl_divergence(p, q) + kl_divergence(q, p)
    if isinstance(which, L2):
        return (current.double() - reference.double()).square().sum(-1).sqrt()
    assert isinstance(which, Renyi)
    return (p.probs**which.alpha * q.probs ** (1 - which.alpha)).sum(-1).log() / (which.alpha - 1)


def mmd(current: Tensor, reference: Tensor, weight: Tensor, scales: tuple[float, ...] = SCALES) -> float:
    """Biased MMD² by a double loop in Python numbers."""
    x, y, w = (t.double().tolist() for t in (current, reference, weight))

    def kernel(a: list[float], b: list[float]) -> float:
        square = sum((s - t) ** 2 for s, t in zip(a, b, strict=True))
        return sum((scale**2 + square) ** -0.5 for scale in scales)

    n = range(len(w))
    pairs = sum(w[i] * w[j] * (kernel(x[i], x[j]) + kernel(y[i], y[j]) - 2 * kernel(x[i], y[j])) for i in n for j in n)
    return pairs / sum(w) ** 2


# --- what is computed ---


@settings(max_examples=60, deadline=None)
@given(which=st.sampled_from(ADDITIVE), shape=SHAPES, seed=SEEDS, scale=st.floats(0.0, 6.0))
def test_rows_are_the_definition(which: Additive, shape: tuple[int, ...], seed: int, scale: float) -> None:
    current, reference = logits(seed, shape, scale), logits(seed + 1, shape, scale)
    expected = definition(which, current, reference)
    actual = which.rows(current, reference)
    assert actual.shape == shape[:-1]
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(which(current, reference), expected.mean(), atol=1e-10, rtol=1e-10)
    in_float32 = which.rows(current.float(), reference.float())
    torch.testing.assert_close(in_float32, definition(which, current.float(), reference.float()).float())


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), classes=st.integers(1, 5), seed=SEEDS, scale=st.floats(0.0, 6.0))
def test_mmd_is_the_biased_estimate_of_its_definition(n: int, classes: int, seed: int, scale: float) -> None:
    current, reference = logits(seed, (n, classes), scale), logits(seed + 1, (n, classes), scale)
    weight = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    ones = torch.ones(n, dtype=torch.float64)
    assert MMD()(current, reference).item() == pytest.approx(mmd(current, reference, ones), abs=1e-12)
    assert MMD()(current, reference, weight).item() == pytest.approx(mmd(current, reference, weight), abs=1e-12)
    own = MMD(scales=(0.7, 3.0))(current, reference).item()
    assert own == pytest.approx(mmd(current, reference, ones, (0.7, 3.0)), abs=1e-12)


def test_mmd_compares_sets_and_not_pairs() -> None:
    current = logits(0, (2, 3, 4))
    shuffled = current.flatten(0, 1)[[3, 0, 5, 1, 4, 2]].view(2, 3, 4)
    assert MMD()(current, shuffled).item() == pytest.approx(0, abs=1e-14)
    assert KL()(current, shuffled).item() > 0.1
    far = MMD()(current, current + 1e6).item()  # every k(c_i, r_j) is 0
    assert far == pytest.approx(2 * MMD()._kernel(current.flatten(0, 1), current.flatten(0, 1)).mean().item(), rel=1e-4)


def test_known_values() -> None:
    current, reference = torch.tensor([0.0, math.log(3.0)]), torch.zeros(2)  # q = (¼, ¾), p = (½, ½)
    assert KL()(current, reference).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert ReverseKL()(current, reference).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert SymmetricKL()(current, reference).item() == pytest.approx(0.25 * math.log(3))
    assert Renyi(2)(current, reference).item() == pytest.approx(math.log(4 / 3))
    assert Renyi()(current, reference).item() == pytest.approx(-2 * math.log(math.sqrt(1 / 8) + math.sqrt(3 / 8)))
    assert L2()(current, reference).item() == pytest.approx(math.log(3))
    one = torch.tensor([[1.0, 0.0]])
    assert MMD((2.0,))(one, -one).item() == pytest.approx(2 * (1 / 2 - 1 / math.sqrt(8)))


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_renyi_goes_to_kl_grows_with_its_order_and_swaps_as_it_should(shape: tuple[int, ...], seed: int) -> None:
    current, reference = logits(seed, shape), logits(seed + 1, shape)
    kl = KL().rows(current, reference)
    for alpha in (1 - 1e-7, 1 + 1e-7):
        torch.testing.assert_close(Renyi(alpha).rows(current, reference), kl, rtol=1e-5, atol=1e-10)
    orders = torch.stack([Renyi(a).rows(current, reference) for a in (0.1, 0.5, 0.9)])
    orders = torch.cat([orders, kl[None], Renyi(2).rows(current, reference)[None]])
    assert (orders.diff(dim=0) > -1e-12).all()
    for alpha in (0.5, 0.2):  # (1 − α) D_α(p ‖ q) = α D_{1−α}(q ‖ p)
        swapped = Renyi(1 - alpha).rows(reference, current)
        torch.testing.assert_close((1 - alpha) * Renyi(alpha).rows(current, reference), alpha * swapped)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=SEEDS, which=st.sampled_from([SymmetricKL(), Renyi(), L2(), MMD()]))
def test_symmetric_divergences(shape: tuple[int, ...], seed: int, which: Divergence) -> None:
    current, reference = logits(seed, shape), logits(seed + 1, shape)
    torch.testing.assert_close(which(current, reference), which(reference, current))


def test_forward_and_reverse_are_each_other_with_the_arguments_swapped() -> None:
    current, reference = logits(0, (5, 4)), logits(1, (5, 4))
    forward, reverse = KL().rows(current, reference), ReverseKL().rows(current, reference)
    torch.testing.assert_close(forward, ReverseKL().rows(reference, current), rtol=0, atol=0)
    assert (forward - reverse).abs().min() > 1e-3
    torch.testing.assert_close(SymmetricKL().rows(current, reference), forward + reverse)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=SEEDS, which=st.sampled_from(OF_SOFTMAX))
def test_a_constant_added_to_a_row_changes_no_divergence_of_probabilities(
    shape: tuple[int, ...], seed: int, which: Additive
) -> None:
    current, reference = logits(seed, shape), logits(seed + 1, shape)
    moved = which.rows(current + logits(seed + 2, (*shape[:-1], 1), 30.0), reference - 7)
    torch.testing.assert_close(moved, which.rows(current, reference), rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=SEEDS, which=st.sampled_from(ALL))
def test_permuting_classes_or_rows_changes_nothing(shape: tuple[int, ...], seed: int, which: Divergence) -> None:
    current, reference = logits(seed, shape), logits(seed + 1, shape)
    order, other = torch.randperm(shape[-1]), torch.randperm(shape[0])
    moved = which(current[other][..., order], reference[other][..., order])
    torch.testing.assert_close(moved, which(current, reference))


# --- the numbers ---


@settings(max_examples=80, deadline=None)
@given(
    which=st.sampled_from(ALL),
    rows=st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=2, max_size=4),
    near=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 1e4]),
    seed=SEEDS,
)
def test_nothing_is_negative_or_infinite_nor_its_gradient(
    which: Divergence, rows: list[list[float]], near: float, seed: int
) -> None:
    reference = torch.tensor(rows)
    current = (reference + logits(seed, tuple(reference.shape), near, torch.float32)).requires_grad_()
    d = which(current, reference)
    d.backward()
    assert d.dtype == torch.float32
    assert d.isfinite()
    assert d >= 0
    assert current.grad is not None
    assert current.grad.isfinite().all()


@pytest.mark.parametrize("which", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_identical_logits_are_exactly_zero_apart(which: Divergence, dtype: torch.dtype, scale: float) -> None:
    current = logits(0, (7, 5, 33), scale, dtype).requires_grad_()
    d = which(current, current.detach().clone())
    d.backward()
    assert d.item() == 0
    assert d.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert current.grad is not None
    assert current.grad.abs().max() < 1e-6


@pytest.mark.parametrize("which", ADDITIVE, ids=repr)
@pytest.mark.parametrize("step", [1e-5, 1e-6, 1e-7])
def test_rounding_makes_no_row_negative(which: Additive, step: float) -> None:
    reference = logits(0, (20_000, 10), 3.0, torch.float32)
    current = reference + logits(1, (20_000, 10), step, torch.float32)
    assert which.rows(current, reference).min() >= 0
    reference[:, -1], current[:, -1] = -130, -20  # with an e^Δ that overflows, where nothing is left to correct with
    assert which.rows(current, reference).min() >= 0
    assert which.rows(reference, current).min() >= 0


@pytest.mark.parametrize("which", [*OF_SOFTMAX, L2(), MMD()], ids=repr)
@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-3])
def test_float32_keeps_the_digits_of_a_small_difference(which: Divergence, step: float) -> None:
    """Where a model has moved its logits by 1e-3, KL is 1e-7 or less, the size of float32's rounding errors in it."""
    reference = logits(0, (64, 1000), 3.0, torch.float32) + 5
    current = reference + logits(1, (64, 1000), step, torch.float32)
    expected = which(current.double(), reference.double()).item()
    assert which(current, reference).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("which", ALL, ids=repr)
def test_half_precision_is_widened_before_anything_is_computed(which: Divergence) -> None:
    current, reference = logits(0, (6, 9), 3.0, torch.bfloat16), logits(1, (6, 9), 3.0, torch.bfloat16)
    expected = which(current.float(), reference.float())
    for x, y in ((current, reference), (current.float(), reference), (current, reference.float())):
        torch.testing.assert_close(which(x, y), expected, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(which(current.float(), reference.float()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("which", OF_SOFTMAX, ids=repr)
def test_extreme_logits(which: Additive) -> None:
    """One class certain on either side, another class each: finite, and what the definition gives in the limit."""
    current, reference = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 0.0]])
    expected = {"KL()": 2e4, "ReverseKL()": 2e4, "SymmetricKL()": 4e4}.get(repr(which))
    if isinstance(which, Renyi):  # the middle class has e^−1e4 on both sides, the others e^0 and e^−2e4
        a = which.alpha
        largest = max(-2e4 * (1 - a), -2e4 * a, -1e4)
        expected = (largest + (math.log(2) if a == 0.5 else 0)) / (a - 1)
        expected += -2 * math.log(1.5) if a == 0.5 else 0
    assert which(current, reference).item() == pytest.approx(expected, rel=1e-5)


def test_probabilities_that_underflow_are_not_taken_for_a_rounding_error() -> None:
    # p of class 1 is 0 in float32, q is not: the exponential of their ratio overflows.
    current, reference = torch.tensor([[0.0, -5.0]]), torch.tensor([[0.0, -110.0]])
    for which in OF_SOFTMAX:
        expected = which.rows(current.double(), reference.double()).float()
        torch.testing.assert_close(which.rows(current, reference), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("which", OF_SOFTMAX, ids=repr)
def test_a_class_that_both_exclude_does_not_count(which: Additive) -> None:
    """As a mask of classes does by logits of −∞, or of which one softmax's class has underflowed."""
    current, reference = logits(0, (6, 4)).requires_grad_(), logits(1, (6, 4))
    excluded = torch.full((6, 2), -torch.inf, dtype=torch.float64)
    wide = torch.cat([excluded[:, :1], current, excluded[:, 1:]], 1)
    found = which.rows(wide, torch.cat([excluded[:, :1], reference, excluded[:, 1:]], 1))
    expected = which.rows(current, reference)
    torch.testing.assert_close(found, expected)
    (gradient,), (right,) = (torch.autograd.grad(rows.sum(), current, retain_graph=True) for rows in (found, expected))
    torch.testing.assert_close(gradient, right)
    assert which(wide, wide.detach()).item() == 0
    with torch.no_grad():
        torch.testing.assert_close(which.rows(wide, wide.roll(1, 0)), which.rows(current, current.roll(1, 0)))


@pytest.mark.parametrize("which", ALL, ids=repr)
def test_logits_that_are_no_numbers_stay_visible(which: Divergence) -> None:
    whole, broken = logits(0, (6, 4)), logits(1, (6, 4))
    broken[2, 1] = torch.nan
    for current, reference in ((broken, broken), (broken, whole), (whole, broken)):
        assert which(current, reference).isnan()


@pytest.mark.parametrize("which", ALL, ids=repr)
def test_gradients_in_both_arguments(which: Divergence) -> None:
    current, reference = logits(0, (4, 3)).requires_grad_(), logits(1, (4, 3)).requires_grad_()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5])
    assert torch.autograd.gradcheck(lambda c, r: which(c, r, weight), (current, reference))


def test_gradients_where_some_rows_are_identical() -> None:
    reference = logits(0, (4, 3))
    current = torch.cat([reference[:2], logits(1, (2, 3))]).requires_grad_()
    for which in (KL(), ReverseKL(), SymmetricKL(), Renyi(2), MMD()):
        assert torch.autograd.gradcheck(lambda c, which=which: which(c, reference), (current,))
    (gradient,) = torch.autograd.grad(L2()(current, reference), current)
    assert (gradient[:2] == 0).all()


def test_the_gradient_of_kl_is_the_difference_of_the_probabilities() -> None:
    reference = logits(0, (8, 50), 3.0, torch.float32)
    current = (reference + logits(1, (8, 50), 1e-3, torch.float32)).requires_grad_()
    (gradient,) = torch.autograd.grad(KL()(current, reference), current)
    difference = (current.double().softmax(-1) - reference.double().softmax(-1)) / 8
    torch.testing.assert_close(gradient.double(), difference, rtol=1e-2, atol=1e-9)


# --- names, and a user's own ---


def test_names() -> None:
    classes = {"kl": KL, "reverse": ReverseKL, "symmetric": SymmetricKL, "mmd": MMD, "l2": L2, "renyi": Renyi}
    for name, expected in classes.items():
        assert type(divergence(name)) is expected
    assert repr(divergence("renyi")) == "Renyi(alpha=0.5)"
    assert repr(divergence("kl")) == "KL()"
    assert repr(divergence("mmd")) == f"MMD(scales={SCALES})"
    with pytest.raises(SteppeError, match="unknown divergence 'reversed'; did you mean 'reverse'"):
        divergence("reversed")


class _Total(Additive):
    """Total variation: a divergence of a user's own."""

    def rows(self, current: Tensor, reference: Tensor) -> Tensor:
        return (current.softmax(-1) - reference.softmax(-1)).abs().sum(-1) / 2


def test_a_divergence_of_ones_own() -> None:
    own = _Total()
    assert divergence(own) is own
    current, reference = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.zeros(2, 2)
    assert own(current, reference).item() == pytest.approx(0.125)
    assert own(current, reference, torch.tensor([1.0, 0.0])).item() == pytest.approx(0.25)

    def plain(current: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
        return (current - reference).abs().max()

    with pytest.raises(TypeError, match="function cannot be the divergence: it lacks additive"):
        divergence(plain)
    plain.additive = False  # type: ignore[attr-defined]
    assert divergence(plain) is plain


def test_what_is_no_divergence_is_refused() -> None:
    with pytest.raises(TypeError, match="KL cannot be the divergence: it is a class, not an instance: call it"):
        divergence(KL)
    with pytest.raises(TypeError, match="float cannot be the divergence: it cannot be called"):
        divergence(0.1)
    for alpha in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="alpha must be positive and finite"):
            Renyi(alpha)
    with pytest.raises(ValueError, match=r"use that"):
        Renyi(1)
    for scales in ((), (0.0,), (1.0, -2.0), (math.inf,)):
        with pytest.raises(ValueError, match="scales must be positive"):
            MMD(scales)


@pytest.mark.parametrize("which", ALL, ids=repr)
def test_shapes_that_do_not_fit_are_refused(which: Divergence) -> None:
    with pytest.raises(ValueError, match=r"same shape \[..., C\], got \[3, 4\] and \[3, 5\]"):
        which(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"one number a row, shape \[3\], got \[3, 4\]"):
        which(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4))
    if isinstance(which, (L2, MMD)):
        assert which(torch.zeros(3, 1), torch.ones(3, 1)) > 0
    else:
        with pytest.raises(ValueError, match="two classes"):
            which(torch.zeros(3, 1), torch.ones(3, 1))
