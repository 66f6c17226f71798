"""Local entropy against its closed form for quadratic losses, and its standard error against what is drawn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from analysis_models import Regression, data, half_square, network, quadratic, regression_data
from torch import Tensor, nn

from steppe.analysis import LocalEntropy, evaluate, local_entropy
from steppe.errors import SteppeError

X, Y = regression_data()
LOADER = [(X[:10], Y[:10]), (X[10:], Y[10:])]


def closed_form(w: Tensor, sigma: float) -> float:
    """−log E exp(−L(w + σz)) for L = L* + ½ (w − w*)ᵀ H (w − w*), by completing the square in z:

    L* + ½ log det(I + σ²H) + ½ (w − w*)ᵀ (H⁻¹ + σ²I)⁻¹ (w − w*).
    """
    n, eye = len(X), torch.eye(X.shape[1], dtype=torch.float64)
    curvature = X.T @ X / n
    best = torch.linalg.solve(curvature, X.T @ Y / n)
    away = w - best
    spread = 0.5 * torch.logdet(eye + sigma**2 * curvature)
    return (
        quadratic(X, Y, best) + spread + 0.5 * away @ torch.linalg.inv(curvature.inverse() + sigma**2 * eye) @ away
    ).item()


def at(w: Tensor) -> Regression:
    model = Regression(len(w))
    with torch.no_grad():
        model.weight.copy_(w)
    return model


def measured(w: Tensor, sigma: float, samples: int, seed: int = 0) -> LocalEntropy:
    return local_entropy(at(w), LOADER, sigma=sigma, samples=samples, seed=seed, loss=half_square)


BEST = torch.linalg.solve(X.T @ X, X.T @ Y)
AWAY = BEST + torch.tensor([0.7, -0.4, 0.2, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("w", [BEST, AWAY], ids=["in the minimum", "beside it"])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_a_quadratic_loss_has_its_closed_form(w: Tensor, sigma: float) -> None:
    found = measured(w, sigma, 1500)
    assert found.standard_error < 0.02
    assert abs(found.value - closed_form(w, sigma)) < 3 * found.standard_error
    assert found.centre == pytest.approx(quadratic(X, Y, w), rel=1e-12)
    # That it is not the mean of the losses, nor the loss in the centre, is to be seen.
    if sigma == 0.5:
        assert abs(found.value - found.centre) > 5 * found.standard_error
        assert sum(found.losses) / len(found.losses) - found.value > 0.02


def test_the_standard_error_is_right() -> None:
    """Over seeds, values lie within one standard error of the truth as often as normal ones, and within two."""
    truth = closed_form(AWAY, 0.4)
    found = [measured(AWAY, 0.4, 60, seed) for seed in range(150)]
    away = torch.tensor([(each.value - truth) / each.standard_error for each in found])
    assert 0.58 < (away.abs() < 1).double().mean() < 0.78
    assert 0.91 < (away.abs() < 2).double().mean() < 0.99
    # The values' own spread is what the errors say.
    spread = torch.tensor([each.value for each in found]).std().item()
    mean_error = sum(each.standard_error for each in found) / len(found)
    assert mean_error == pytest.approx(spread, rel=0.15)


def test_the_standard_error_shrinks_with_the_root_of_the_samples() -> None:
    few = sum(measured(AWAY, 0.4, 40, seed).standard_error for seed in range(20)) / 20
    many = measured(AWAY, 0.4, 1440).standard_error
    assert few / many == pytest.approx(6, rel=0.15)


def test_the_value_is_too_large_by_half_the_squared_error() -> None:
    truth = closed_form(AWAY, 1.0)
    found = [measured(AWAY, 1.0, 8, seed) for seed in range(600)]
    bias = sum(each.value for each in found) / len(found) - truth
    noise = torch.tensor([each.value for each in found]).std().item() / math.sqrt(len(found))
    predicted = 0.5 * torch.tensor([each.value for each in found]).var().item()
    assert bias > 3 * noise
    assert bias == pytest.approx(predicted, abs=3 * noise)


def test_every_draw_is_the_weights_plus_sigma_times_its_noise() -> None:
    """The losses are those of weights that the test disturbs itself, with the same generator, from fresh copies."""
    model = network()
    found = local_entropy(model, data(), sigma=0.3, samples=4, seed=5)
    generator = torch.Generator().manual_seed(5)
    for loss in found.losses:
        other = network()
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.requires_grad:  # the frozen layer stays
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        assert evaluate(other, data()).loss == loss
    assert len(set(found.losses)) == 4


def test_names_choose_what_is_disturbed() -> None:
    model = network()
    frozen = model[5].weight
    seen: list[Tensor] = []

    def watching(outputs: Tensor, y: Tensor) -> Tensor:
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return outputs.square().mean(1)

    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    names = torch.cat([torch.full((p.numel(),), i) for i, p in enumerate(model.parameters())])
    kept = [name for name, _ in model.named_parameters()]
    for chosen, expected in (
        (None, [name for name in kept if name != "5.weight"]),
        ("all", kept),
        (["0.bias", "7.weight"], ["0.bias", "7.weight"]),
        (("5.weight",), ["5.weight"]),
        ("0.bias", ["0.bias"]),
    ):
        seen.clear()
        local_entropy(model, data(8), sigma=1.0, samples=2, names=chosen, loss=watching)
        changed = names[seen[-1] != start].unique().tolist()
        assert [kept[i] for i in changed] == expected
    assert torch.equal(start, torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not frozen.requires_grad


def test_the_seed_decides_and_nothing_else_does() -> None:
    model = network()
    torch.manual_seed(0)
    first = local_entropy(model, data(), sigma=0.1, samples=3, seed=1)
    torch.manual_seed(1)
    assert local_entropy(model, data(), sigma=0.1, samples=3, seed=1) == first
    assert local_entropy(model, data(), sigma=0.1, samples=3, seed=2).losses != first.losses


def constant(values: list[float]) -> Any:
    """A loss that takes these values, one at each pass over the only batch."""
    left = iter(values)
    return lambda outputs, y: torch.tensor(next(left), dtype=torch.float64)


def entropy_of(values: list[float]) -> LocalEntropy:
    return local_entropy(nn.Linear(6, 3), data(8), sigma=0.1, samples=len(values), loss=constant([0.0, *values]))


def test_large_losses_neither_underflow_nor_overflow() -> None:
    values = [1000.0, 1001.0, 1003.0]
    found = entropy_of(values)
    z = [math.exp(1000 - value) for value in values]
    mean = sum(z) / 3
    assert found.value == pytest.approx(1000 - math.log(mean), rel=1e-14)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in z) / 2)
    assert found.standard_error == pytest.approx(deviation / mean / math.sqrt(3), rel=1e-12)
    assert found.effective_samples == pytest.approx(sum(z) ** 2 / sum(each**2 for each in z), rel=1e-12)
    assert entropy_of([-1000.0, -999.0]).value == pytest.approx(-1000 + math.log(2 / (1 + math.exp(-1))), rel=1e-12)


def test_what_is_not_finite_is_reported() -> None:
    infinite = entropy_of([1.0, math.inf, 1.0])
    assert infinite.value == pytest.approx(1 + math.log(3 / 2), rel=1e-12)  # exp(−∞) is 0
    assert infinite.non_finite == 1
    assert "1 of them not finite" in repr(infinite)
    undefined = entropy_of([1.0, math.nan, 1.0])
    assert math.isnan(undefined.value)
    assert math.isnan(undefined.standard_error)
    assert entropy_of([math.inf, math.inf]).value == math.inf


def test_equal_losses_have_no_error() -> None:
    found = entropy_of([2.0, 2.0])
    assert (found.value, found.standard_error, found.effective_samples) == (2.0, 0.0, 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": -1.0}, "sigma must be positive"),
        ({"sigma": math.nan}, "sigma must be positive"),
        ({"sigma": math.inf}, "sigma must be positive"),
        ({"samples": 1}, "at least 2 samples"),
        ({"names": []}, "names is empty"),
        ({"names": ["0.wieght"]}, "unknown parameter '0.wieght'; did you mean '0.weight'"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        local_entropy(network(), data(), **{"sigma": 0.1, "samples": 3, **changes})
    assert "names" not in changes or not changes["names"] or isinstance(error.value, SteppeError)


def test_a_model_that_cannot_be_disturbed_is_refused() -> None:
    frozen = network().requires_grad_(False)
    with pytest.raises(ValueError, match="names='all'"):
        local_entropy(frozen, data(), sigma=0.1)
    assert local_entropy(frozen, data(), sigma=0.1, samples=2, names="all").losses
    with pytest.raises(ValueError, match="no parameters"):
        local_entropy(nn.Identity(), data(), sigma=0.1)
    with pytest.raises(ValueError, match="complex"):
        local_entropy(nn.Linear(6, 3, dtype=torch.complex64), data(), sigma=0.1)


def test_half_precision_is_warned_about() -> None:
    model = nn.Linear(6, 3).bfloat16()
    batches = [(x.bfloat16(), y) for x, y in data()]
    with pytest.warns(UserWarning, match="half precision"):
        found = local_entropy(model, batches, sigma=0.5, samples=3)
    assert len(set(found.losses)) == 3
