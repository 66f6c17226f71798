"""Small float64 problems, and an oracle that computes a sharpness-aware step by autograd alone.

The oracle shares no code with the engine: it builds the objective as a graph, differentiates it, writes ε from the
papers' formulas on one flat vector, and steps plain gradient descent by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe

MAKERS: dict[str, Callable[..., steppe.SharpnessAware]] = {
    "sam": steppe.SAM,
    "asam": steppe.ASAM,
    "gsam": steppe.GSAM,
    "sagm": steppe.SAGM,
    "disam": steppe.DISAM,
    "disam+sagm": lambda base, **parts: steppe.DISAM(base, descent=steppe.GradientMatching(), **parts),
}
"""The named methods, and a sum that takes three passes."""


@dataclass
class Problem:
    x: Tensor
    y: Tensor
    domain: Tensor


def network(seed: int = 0, normalise: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)]
    if normalise:
        layers.insert(1, nn.BatchNorm1d(8))
    return nn.Sequential(*layers).double()


def batches(steps: int, samples: int = 15, domains: int = 3, seed: int = 1) -> list[Problem]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(steps):
        x = torch.randn(samples, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (samples,), generator=generator)
        domain = torch.randint(0, domains, (samples,), generator=generator)
        x = x * (1 + domain[:, None])  # domains that differ in difficulty
        made.append(Problem(x, y, domain))
    return made


def losses_of(model: nn.Module, problem: Problem) -> Tensor:
    return cross_entropy(model(problem.x), problem.y, reduction="none")


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def weights(model: nn.Module) -> Tensor:
    return flat([p.detach() for p in model.parameters()])


@dataclass
class Oracle:
    """One step of gradient descent with a method given by its formulas, on one flat vector of weights."""

    model: nn.Module
    lr: float
    lam: float = 0.0
    epsilon: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda w, a, g: 0.05 * a / a.norm()
    descent: Callable[[Tensor, Tensor], Tensor] = lambda g, gp: gp
    shared: bool = False

    def gradient(self, w: Tensor, problem: Problem, lam: float) -> Tensor:
        shapes = dict(self.model.named_parameters())
        w = w.clone().requires_grad_()
        parameters, start = {}, 0
        for name, p in shapes.items():
            parameters[name] = w[start : start + p.numel()].view_as(p)
            start += p.numel()
        losses = cross_entropy(
            torch.func.functional_call(self.model, parameters, problem.x), problem.y, reduction="none"
        )
        ids = problem.domain.unique()
        means = torch.stack([losses[problem.domain == i].mean() for i in ids])
        # METHODS: Var = (1/2M²) Σ_i Σ_j (L_i − L_j)², written as printed, not as the engine has it
        variance = ((means[:, None] - means[None, :]) ** 2).sum() / (2 * len(ids) ** 2)
        (gradient,) = torch.autograd.grad(losses.mean() - lam * variance, w)
        return gradient

    def step(self, w: Tensor, problem: Problem) -> Tensor:
        a = self.gradient(w, problem, self.lam)
        g = a if self.shared else self.gradient(w, problem, 0.0)
        perturbed = self.gradient(w + self.epsilon(w, a, g), problem, 0.0)
        return w - self.lr * self.descent(g, perturbed)


def gsam(alpha: float) -> Callable[[Tensor, Tensor], Tensor]:
    def descent(g: Tensor, gp: Tensor) -> Tensor:
        parallel = (g @ gp) / (gp @ gp) * gp
        return gp - alpha * (g - parallel)

    return descent


def closure_for(optimizer, model: nn.Module, problem: Problem, hook: Callable[[float], object] = lambda call: None):
    """A closure as a user writes it; ``hook`` is called in pass k with k before ``backward()``, with k + ½ after it."""
    calls = iter(range(10))

    def closure():
        call = next(calls)
        optimizer.zero_grad()
        loss = optimizer.objective(losses_of(model, problem), problem.domain)
        hook(call)
        loss.backward()
        hook(call + 0.5)
        return loss

    return closure
