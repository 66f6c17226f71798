from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from steppe.tasks.classification import predict, sample_losses


class Drifting(nn.Module):
    """Logits that depend on the mode, to see that evaluation mode is used and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.drop(self.norm(x)))
        return logits


def test_sample_losses_are_minus_the_log_of_the_softmax() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    expected = -(logits.exp() / logits.exp().sum(1, keepdim=True)).log()[torch.arange(6), labels]
    torch.testing.assert_close(sample_losses(logits, labels), expected)


def test_predictions_equal_a_loop_over_samples() -> None:
    model = Drifting()
    data = {name: (torch.randn(n, 4), torch.randint(3, (n,))) for name, n in (("a", 7), ("b", 5))}
    loaders = {name: [(x[:3], y[:3]), (x[3:], y[3:])] for name, (x, y) in data.items()}
    found = predict(model, loaders, device=torch.device("cpu"))
    model.eval()
    for name, (x, y) in data.items():
        for i in range(len(y)):
            logits = model(x[i : i + 1])[0].detach()
            assert found[name].label[i] == y[i]
            assert found[name].predicted[i] == logits.argmax()
            assert found[name].confidence[i] == pytest.approx(float(logits.softmax(0).max()), rel=1e-5)
            assert found[name].loss[i] == pytest.approx(float(-logits.log_softmax(0)[y[i]]), rel=1e-5)
        correct = found[name].predicted == y.numpy()
        assert found[name].accuracy() == correct.mean()
        rows = np.array([0, 2, 4])
        assert found[name].accuracy(rows) == correct[rows].mean()
        assert found[name].mean_loss(rows) == pytest.approx(found[name].loss[rows].mean())


def test_modes_and_statistics_are_left_as_they_were() -> None:
    model = Drifting()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict(model, {"a": [(torch.randn(3, 4), torch.tensor([0, 1, 2]))]}, device=torch.device("cpu"))
    assert model.training
    assert model.drop.training
    assert not model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_modes_are_put_back_when_a_loader_fails() -> None:
    model = Drifting()

    def broken():  # type: ignore[no-untyped-def]
        yield torch.randn(3, 4), torch.tensor([0, 1, 2])
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        predict(model, {"a": broken()}, device=torch.device("cpu"))
    assert model.training


def test_a_tie_goes_to_the_first_class() -> None:
    found = predict(
        nn.Identity(), {"a": [(torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([1]))]}, device=torch.device("cpu")
    )
    assert found["a"].predicted[0] == 1
    assert found["a"].confidence[0] < 0.5
