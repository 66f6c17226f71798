"""Small models and loaders for the instruments, and every instrument by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from steppe.analysis import cka, evaluate, local_entropy, plane, segment

Batches = list[tuple[Tensor, Tensor]]


class Counting(nn.Module):
    """Writes to its buffers at every call, in evaluation mode too; puts a new tensor in the place of one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("last", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.scratch += 0.5
        self.last = x.detach().flatten()[:3].float()
        return x


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """BatchNorm, dropout, a layer that does not train, and one that is in evaluation mode while the others train."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), Counting(), nn.Linear(8, 7), nn.BatchNorm1d(7),
        nn.Linear(7, 3),
    ).to(dtype)  # fmt: skip
    with torch.no_grad():
        for norm in (model[1], model[6]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    model[5].weight.requires_grad_(False)
    model[6].eval()
    return model


def data(samples: int = 30, size: int = 8, seed: int = 1, dtype: torch.dtype = torch.float32) -> Batches:
    """Batches of ``size``, the last one smaller."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator, dtype=dtype)
    y = torch.randint(0, 3, (samples,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def moved_state(model: nn.Module, seed: int, scale: float = 0.3) -> dict[str, Tensor]:
    """The model's state, away from it in a random direction; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        state[name] = value.clone()
        if value.is_floating_point():
            state[name] += scale * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if name.endswith("running_var"):
            state[name].abs_().add_(0.1)
    return state


class Regression(nn.Module):
    """f(x) = ⟨w, x⟩, whose squared loss is a quadratic in w."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def half_square(outputs: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (outputs - y).square()


def regression_data(width: int = 4, samples: int = 25, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    y = torch.randn(samples, generator=generator, dtype=torch.float64)
    return x, y


def quadratic(x: Tensor, y: Tensor, w: Tensor) -> float:
    """(1/2N) Σ (⟨w, x_i⟩ − y_i)², from its coefficients."""
    n = len(x)
    curvature, slope = x.T @ x / n, x.T @ y / n
    return (0.5 * w @ curvature @ w - w @ slope + 0.5 * y @ y / n).item()


def bits(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Everything that is to come back: every tensor's bytes, place and identity, gradients, every mode."""
    found: dict[str, tuple[Any, ...]] = {}
    for prefix, module in model.named_modules():
        found[f"{prefix} mode"] = (module.training,)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found[f"{prefix}.{name}"] = (id(tensor), tensor.data_ptr(), tensor.requires_grad, content)
    return found


INSTRUMENTS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "evaluate": lambda model, loader: evaluate(model, loader),
    "local_entropy": lambda model, loader: local_entropy(model, loader, sigma=0.1, samples=3),
    "segment": lambda model, loader: segment(model, model, moved_state(model, 1), loader, 4, 0.5),
    "segment, refreshed": lambda model, loader: segment(
        model, model, moved_state(model, 1), loader, 4, 0.5, refresh=data(seed=2)
    ),
    "plane": lambda model, loader: plane(
        model, (model.state_dict(), moved_state(model, 1), moved_state(model, 2)), loader, (2, 3)
    ),
    "cka": lambda model, loader: cka(model, model, loader, ["0", "4", "7"]),
    "cka of states": lambda model, loader: cka(
        model, model, loader, state_a=moved_state(model, 1), state_b=model.state_dict()
    ),
}


class Failing:
    """Batches that end in an error at the n-th of all that were asked for, and can be gone through again before."""

    def __init__(self, batches: Batches, after: int) -> None:
        self.batches, self.left = batches, after

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            if self.left == 0:
                raise OSError("the disk is gone")
            self.left -= 1
            yield batch
