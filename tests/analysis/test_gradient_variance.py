"""Gradient variance against per-batch gradients written out, and against its closed form for a linear model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from analysis_models import data, network
from torch import Tensor, nn
from torch.nn import functional as F

from steppe.analysis import gradient_variance


def by_hand(model: nn.Module, loader: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Σ‖g_b − ḡ‖²/(B − 1) and ‖ḡ‖ from backward(), a batch at a time, in float64."""
    own = copy.deepcopy(model).double().eval()
    rows = []
    for x, y in loader:
        own.zero_grad()
        F.cross_entropy(own(x.double()), y).backward()
        rows.append(torch.cat([p.grad.flatten() for p in own.parameters() if p.requires_grad and p.grad is not None]))
    table = torch.stack(rows)
    return table.var(0, correction=1).sum().item(), table.mean(0).norm().item()


def test_it_is_the_trace_of_the_gradients_covariance() -> None:
    model, loader = network(dtype=torch.float64), data(samples=32, size=8, dtype=torch.float64)
    found = gradient_variance(model, loader)
    variance, norm = by_hand(model, loader)
    assert found.value == pytest.approx(variance, rel=1e-10)
    assert found.norm == pytest.approx(norm, rel=1e-10)
    assert (found.batches, found.size) == (4, 8)


def test_a_linear_model_in_closed_form() -> None:
    """L = mean of ½(wx − y)²: g_b = w·mean(x²) − mean(xy), whose variance over batches is a number."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.5)
    x = torch.tensor([[1.0], [2.0], [3.0], [-1.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [0.0], [2.0], [5.0]], dtype=torch.float64)
    found = gradient_variance(
        model, [(x[:2], y[:2]), (x[2:], y[2:])], loss=lambda out, y: 0.5 * (out - y).square().mean()
    )
    first, second = 0.5 * 2.5 - 0.5, 0.5 * 5.0 - (6.0 - 5.0) / 2
    assert found.value == pytest.approx((first - second) ** 2 / 2)
    assert found.norm == pytest.approx(abs(first + second) / 2)


def test_equal_batches_have_no_variance_exactly() -> None:
    x, y = data(samples=8, size=8)[0]
    assert gradient_variance(network(), [(x, y)] * 5).value == 0.0


def test_it_falls_as_one_over_the_batch_size() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4096, 6, generator=generator), torch.randint(0, 3, (4096,), generator=generator)
    model = network()
    small = gradient_variance(model, list(zip(x.split(8), y.split(8), strict=True))).value
    large = gradient_variance(model, list(zip(x.split(64), y.split(64), strict=True))).value
    assert small / large == pytest.approx(8, rel=0.3)


def test_a_smaller_last_batch_is_left_out() -> None:
    model, loader = network(), data(samples=30, size=8)
    assert len(loader[-1][1]) == 6
    found = gradient_variance(model, loader)
    assert found.batches == 3
    assert found.value == pytest.approx(gradient_variance(model, loader[:3]).value, rel=1e-12)


def test_everything_comes_back_as_it_was() -> None:
    model = network()
    model[0].weight.grad = torch.full_like(model[0].weight, 3.0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    gradient_variance(model, data())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[0].weight.grad, torch.full_like(model[0].weight, 3.0))
    assert all(p.grad is None for p in model.parameters() if p is not model[0].weight)
    assert torch.equal(torch.get_rng_state(), random)


def test_one_rank_measures_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def together(*inputs: object) -> None:
        raise AssertionError("a pass of DistributedDataParallel concerns every rank")

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = network()
        parallel = nn.parallel.DistributedDataParallel(model)
        (x, y), *_ = loader = data()
        with monkeypatch.context() as patch:
            patch.setattr(parallel, "forward", together)
            assert gradient_variance(parallel, loader).value == gradient_variance(model, loader).value
        for _ in range(2):  # training goes on
            F.cross_entropy(parallel(x), y).backward()
        assert model[0].weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()


def test_it_works_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        outside = gradient_variance(network(), data()).value
    assert outside == gradient_variance(network(), data()).value > 0


def test_what_cannot_be_measured_is_refused() -> None:
    x, y = data(samples=8, size=8)[0]
    with pytest.raises(ValueError, match="at least 2 batches"):
        gradient_variance(network(), [(x, y)])
    with pytest.raises(ValueError, match="at least 2 batches"):
        gradient_variance(network(), iter([]))
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        gradient_variance(network().requires_grad_(False), [(x, y)] * 2)
