"""The objectives: closed form against autograd, invariances, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import batches, losses_of, network

import steppe
from steppe.objectives import reweighted_mean
from steppe.replicas import Replicas

LOSSES = st.lists(
    st.tuples(st.floats(0.0, 50.0), st.integers(-3, 6)),
    min_size=1,
    max_size=40,
)


def variance_objective(losses: torch.Tensor, domains: torch.Tensor, lam: float) -> torch.Tensor:
    means = torch.stack([losses[domains == i].mean() for i in domains.unique()])
    return losses.mean() - lam * means.var(correction=0)


@settings(max_examples=200, deadline=None)
@given(batch=LOSSES, lam=st.floats(0.0, 10.0))
def test_coefficients_are_the_gradient_of_mean_minus_variance(batch, lam) -> None:
    losses = torch.tensor([loss for loss, _ in batch], dtype=torch.float64, requires_grad=True)
    domains = torch.tensor([domain for _, domain in batch])
    (expected,) = torch.autograd.grad(variance_objective(losses, domains, lam), losses)
    actual = steppe.DomainVariance(lam).coefficients(losses.detach(), domains)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)


@settings(max_examples=50, deadline=None)
@given(batch=LOSSES, lam=st.floats(0.0, 5.0), seed=st.integers(0, 999))
def test_permuting_the_batch_and_renaming_domains_change_nothing(batch, lam, seed) -> None:
    losses = torch.tensor([loss for loss, _ in batch], dtype=torch.float64)
    domains = torch.tensor([domain for _, domain in batch])
    objective = steppe.DomainVariance(lam)
    coefficients = objective.coefficients(losses, domains)
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(objective.coefficients(losses[order], domains[order]), coefficients[order])
    torch.testing.assert_close(objective.coefficients(losses, 1000 - 17 * domains), coefficients)


@settings(max_examples=50, deadline=None)
@given(batch=LOSSES, lam=st.floats(0.0, 5.0), shift=st.floats(-5, 5), scale=st.floats(0.1, 5))
def test_shifting_all_losses_changes_nothing_and_scaling_scales_the_variance(batch, lam, shift, scale) -> None:
    losses = torch.tensor([loss for loss, _ in batch], dtype=torch.float64)
    domains = torch.tensor([domain for _, domain in batch])
    coefficients = steppe.DomainVariance(lam).coefficients(losses, domains)
    shifted = steppe.DomainVariance(lam).coefficients(losses + shift, domains)
    torch.testing.assert_close(shifted, coefficients, atol=1e-9, rtol=1e-9)
    scaled = steppe.DomainVariance(lam / scale).coefficients(losses * scale, domains)
    torch.testing.assert_close(scaled, coefficients, atol=1e-9, rtol=1e-9)


def test_the_coefficients_sum_to_one_whatever_lambda() -> None:
    # Σ_i (L_i − L̄) = 0: the climb keeps its size, it only moves between domains.
    losses, domains = torch.rand(30, dtype=torch.float64), torch.randint(0, 4, (30,))
    for lam in (0.0, 0.1, 3.0):
        assert steppe.DomainVariance(lam).coefficients(losses, domains).sum().item() == pytest.approx(1.0)


def test_equal_halves_of_every_domain_change_nothing() -> None:
    """Splitting each domain into two with the same losses leaves M·Var and all β per sample as they were."""
    losses = torch.rand(12, dtype=torch.float64)
    domains = torch.arange(12) % 3
    doubled, labels = torch.cat([losses, losses]), torch.cat([domains, domains + 10])
    whole = steppe.DomainVariance(0.7).coefficients(losses, domains)
    halves = steppe.DomainVariance(0.7).coefficients(doubled, labels)
    torch.testing.assert_close(halves, torch.cat([whole, whole]) / 2)


def test_one_domain_or_lambda_zero_is_sam() -> None:
    losses = torch.rand(9, dtype=torch.float64)
    mean = steppe.Mean().coefficients(losses, None)
    one_domain = steppe.DomainVariance(0.9).coefficients(losses, torch.full((9,), 4))
    torch.testing.assert_close(one_domain, mean)
    assert torch.equal(steppe.DomainVariance(0.0).coefficients(losses, torch.arange(9)), mean)
    assert steppe.DomainVariance(0.0).plain
    assert not steppe.DomainVariance(0.1).plain


def test_large_lambda_may_turn_a_coefficient_negative() -> None:
    coefficients = steppe.DomainVariance(5.0).coefficients(torch.tensor([0.0, 3.0]), torch.tensor([0, 1]))
    assert coefficients[0] > 1 > 0 > coefficients[1]


def test_reweighted_mean_has_the_value_of_the_mean_and_the_gradient_of_the_sum() -> None:
    losses = torch.rand(1001, requires_grad=True)
    coefficients = torch.randn(1001)
    loss = reweighted_mean(losses, coefficients)
    assert torch.equal(loss, losses.mean())
    (3 * loss).backward()
    torch.testing.assert_close(losses.grad, 3 * coefficients)


def test_the_value_is_the_mean_loss_in_every_pass() -> None:
    model, problem = network(), batches(1)[0]
    optimizer = steppe.DISAM(torch.optim.SGD(model.parameters(), lr=0.1), lam=2.0)
    losses = losses_of(model, problem)
    expected = losses.mean()
    gradients = {}
    with optimizer.climbing():
        value = optimizer.objective(losses, problem.domain)
        gradients["climb"] = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        value.backward(retain_graph=True)
        assert torch.equal(value, expected)
    outside = optimizer.objective(losses, problem.domain)
    assert torch.equal(outside, expected)
    gradients["outside"] = torch.autograd.grad(outside, list(model.parameters()))
    assert not torch.allclose(gradients["climb"][0], gradients["outside"][0])


def test_domain_means_against_a_loop() -> None:
    losses = torch.rand(20, dtype=torch.float64, requires_grad=True)
    domains = torch.tensor([7, -1, 3, 3] * 5)
    means, counts, ids = steppe.domain_means(losses, domains)
    assert ids.tolist() == [-1, 3, 7]
    assert counts.tolist() == [5, 10, 5]
    torch.testing.assert_close(means, torch.stack([losses[domains == i].mean() for i in (-1, 3, 7)]))
    (gradient,) = torch.autograd.grad(means[1], losses)
    torch.testing.assert_close(gradient, (domains == 3).double() / 10)


@pytest.mark.parametrize(
    ("losses", "domains", "message"),
    [
        (torch.rand(4, 2), torch.zeros(4, dtype=torch.long), "one a sample"),
        (torch.rand(4), torch.zeros(3, dtype=torch.long), "one a sample"),
        (torch.rand(()), torch.zeros((), dtype=torch.long), "one a sample"),
        (torch.rand(4), torch.zeros(4), "integers"),
        (torch.rand(4), torch.zeros(4, dtype=torch.bool), "integers"),
        (torch.rand(0), torch.zeros(0, dtype=torch.long), "empty"),
    ],
)
def test_what_is_no_batch_is_refused(losses, domains, message) -> None:
    optimizer = steppe.SAM(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    with pytest.raises(ValueError, match=message):
        optimizer.objective(losses, domains)
    with pytest.raises(ValueError, match=message):
        steppe.domain_means(losses, domains)


@pytest.mark.parametrize("bad", [-0.1, float("nan")])
def test_bad_numbers_are_refused(bad) -> None:
    for make in (steppe.DomainVariance, steppe.Adaptive, steppe.SurrogateGap, steppe.GradientMatching, steppe.Constant):
        with pytest.raises(ValueError, match="at least 0"):
            make(bad)
    with pytest.raises(ValueError, match="lr_max"):
        steppe.Proportional(0.1, 0.1, lr_max=0.1, lr_min=0.1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("number", [None, 3, 7])
def test_the_coefficients_of_the_joined_batch_are_those_of_a_batch(dtype: torch.dtype, number: int | None) -> None:
    """Of one rank; those of several are compared with one process in tests/distributed."""
    objective, alone = steppe.DomainVariance(0.5, number), Replicas(None, [], None)
    losses, domains = torch.rand(9, dtype=torch.float64), torch.tensor([0, 2, 2, 0, 1, 2, 0, 0, 2]).to(dtype)
    expected = steppe.DomainVariance(0.5).coefficients(losses, domains)
    torch.testing.assert_close(objective.joint_coefficients(losses, domains, alone), expected)


@pytest.mark.parametrize(("number", "domains"), [(2, [0, 1, 2]), (None, [-1, 0, 1])])
def test_domains_that_ranks_cannot_number_are_named(number: int | None, domains: list[int]) -> None:
    message = f"domains must be numbered 0 to 1, got {min(domains)} to {max(domains)}"
    with pytest.raises(ValueError, match=message):
        steppe.DomainVariance(0.5, number).joint_coefficients(
            torch.rand(3), torch.tensor(domains), Replicas(None, [], None)
        )
