"""Mean loss and accuracy against loops over single samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from analysis_models import data, half_square, network, regression_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from steppe.analysis import Evaluation, evaluate


def by_loop(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    model.eval()
    losses, right = [], []
    for x, y in batches:
        for each, label in zip(x, y, strict=True):
            with torch.no_grad():
                logits = model(each[None])[0]
            losses.append(-(logits[label] - logits.logsumexp(0)).item())
            right.append(logits.argmax().item() == label.item())
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize("size", [1, 7, 8, 30])
def test_every_sample_counts_the_same_whatever_its_batch(size: int) -> None:
    batches = data(size=size, dtype=torch.float64)
    found = evaluate(network(dtype=torch.float64), batches)
    loss, accuracy = by_loop(network(dtype=torch.float64), batches)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.accuracy == pytest.approx(accuracy, rel=1e-12)
    assert (found.samples, found.non_finite) == (30, 0)


def test_losses_are_summed_in_float64() -> None:
    # In float32 a sum of 10⁸ loses a 1.
    x = torch.tensor([1e8, 1.0, 1.0, 1.0, 1.0], dtype=torch.float32)
    found = evaluate(nn.Identity(), [(x[:3], x[:3]), (x[3:], x[3:])], loss=lambda outputs, y: outputs)
    assert found.loss == (1e8 + 4) / 5


def test_a_batch_mean_counts_as_many_samples_as_the_batch_has() -> None:
    batches = data(dtype=torch.float64)
    model = network(dtype=torch.float64)
    assert evaluate(model, batches, loss=cross_entropy).loss == pytest.approx(evaluate(model, batches).loss, rel=1e-12)
    assert evaluate(model, batches, loss=cross_entropy).accuracy == evaluate(model, batches).accuracy


def test_pixels_are_averaged_within_their_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (6, 5, 5), generator=generator)
    found = evaluate(nn.Identity(), [(logits[:4], y[:4]), (logits[4:], y[4:])])
    assert found.loss == pytest.approx(cross_entropy(logits, y).item(), rel=1e-12)
    assert found.accuracy == pytest.approx((logits.argmax(1) == y).double().mean().item(), rel=1e-12)
    assert found.samples == 6


def test_half_precision_logits_are_judged_in_float32() -> None:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = torch.arange(50) % 5
    assert evaluate(nn.Identity(), [(logits, y)]).loss == pytest.approx(cross_entropy(logits.float(), y).item(), 1e-6)


def test_what_is_not_finite_is_reported() -> None:
    logits = torch.zeros(6, 3)
    logits[0, 2] = math.inf
    logits[1, 0] = math.nan
    y = torch.tensor([2, 0, 0, 0, 1, 1])
    found = evaluate(nn.Identity(), [(logits[:2], y[:2]), (logits[2:], y[2:])])
    assert math.isnan(found.loss)
    assert found.non_finite == 2
    assert found.accuracy == pytest.approx(3 / 6)  # the row of NaN is no correct answer, though argmax points at y
    assert "2 losses not finite" in repr(found)


def test_targets_that_are_no_classes_have_no_accuracy() -> None:
    x, y = regression_data()
    found = evaluate(nn.Identity(), [(x[:, 0], y)], loss=half_square)
    assert found.accuracy is None
    assert found.loss == pytest.approx(0.5 * (x[:, 0] - y).square().mean().item(), rel=1e-12)
    shares = torch.softmax(x[:, :3], 1)
    assert evaluate(nn.Identity(), [(x[:, :3], shares)]).accuracy is None


class Named(nn.Module):
    """A model whose input and output are dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.inner(batch["pixels"])}


def test_containers_go_in_and_out() -> None:
    model, batches = Named(), data()
    boxed = [({"pixels": x}, y, ["a name"] * len(y)) for x, y in batches]
    found = evaluate(model, boxed, loss=lambda outputs, y: cross_entropy(outputs["logits"], y, reduction="none"))
    assert found.loss == evaluate(model.inner, batches).loss
    with pytest.raises(TypeError, match="pass loss="):
        evaluate(model, boxed)


def test_a_data_loader_and_an_iterator_serve() -> None:
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    expected = evaluate(network(), [(x, y)])
    loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)
    assert evaluate(network(), loader).loss == pytest.approx(expected.loss, rel=1e-6)
    assert evaluate(network(), iter(data())).loss == pytest.approx(expected.loss, rel=1e-6)


def test_empty_batches_do_not_count() -> None:
    x, y = data()[0]
    assert evaluate(network(), [(x, y), (x[:0], y[:0])]) == evaluate(network(), [(x, y)])


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "gave no samples"),
        (iter(()), "gave no samples"),
        ([(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))], "gave no samples"),
        ([torch.zeros(2, 6)], r"batches \(x, y, ...\), not something \(Tensor\)"),
        ([(torch.zeros(2, 6),)], r"batches \(x, y, ...\), not something of 1"),
        ([(torch.zeros(2, 6), torch.tensor(1))], "samples first"),
    ],
)
def test_loaders_that_cannot_serve_are_named(loader: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(network(), loader)


def test_a_loss_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="5 values for 8 samples"):
        evaluate(network(), data(8), loss=lambda outputs, y: outputs[:5, 0])


def test_its_words() -> None:
    assert repr(Evaluation(0.25, 0.5, 10)) == "Evaluation(loss 0.25, accuracy 50.0 %, 10 samples)"
    assert repr(Evaluation(0.25, None, 10)) == "Evaluation(loss 0.25, 10 samples)"
