"""Lookahead by its formulas, on one flat vector of float64 weights. Shares no code with the optimizer.

Means are means over everything that has been, the penalty is a graph that is differentiated, the base optimizers are
written out from their papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from oracle import Oracle, adaptive, trust
from problems import Problem, network
from torch import Tensor

import steppe

LR = 0.2


class Momentum:
    """v ← 0.9 v + g + 0.01 w;  w ← w − lr v."""

    def __init__(self) -> None:
        self.state = {"momentum_buffer": torch.zeros(())}

    def step(self, w: Tensor, g: Tensor) -> Tensor:
        self.state["momentum_buffer"] = 0.9 * self.state["momentum_buffer"] + g + 0.01 * w
        return w - LR * self.state["momentum_buffer"]


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019), β 0.9 and 0.99."""

    def __init__(self) -> None:
        self.state = {"exp_avg": torch.zeros(()), "exp_avg_sq": torch.zeros(())}
        self.count = 0

    def step(self, w: Tensor, g: Tensor) -> Tensor:
        self.count += 1
        first = 0.9 * self.state["exp_avg"] + 0.1 * g
        second = 0.99 * self.state["exp_avg_sq"] + 0.01 * g**2
        self.state = {"exp_avg": first, "exp_avg_sq": second}
        corrected = first / (1 - 0.9**self.count), second / (1 - 0.99**self.count)
        return w - LR * 0.05 * w - LR * corrected[0] / (corrected[1].sqrt() + 1e-8)


FORMULAS = {"momentum": Momentum, "adamw": AdamW}
BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.9, 0.99), weight_decay=0.05),
}

INNER = {
    "none": (lambda base, model: base, {}),
    "sam": (lambda base, model: steppe.SAM(base, rho=0.1, model=model), {"rho": 0.1}),
    "disam": (lambda base, model: steppe.DISAM(base, rho=0.1, lam=0.5, model=model), {"rho": 0.1, "lam": 0.5}),
    "tram": (
        lambda base, model: steppe.TRAM(base, model),
        {"rho": trust("previous", "kl"), "direction": adaptive(0.0)},
    ),
}
"""What Lookahead is put around, and what the oracle is told of it."""

VARIANTS = {
    "plain": {},
    "mean": {"fast": "mean"},
    "anchor": {"anchor": 3.0},
    "anchor, sum": {"anchor": 0.05, "anchor_reduction": "sum"},
    "mean and anchor": {"fast": "mean", "anchor": 0.05, "anchor_reduction": "sum"},
}


@dataclass
class ByFormulas:
    """A round after another. ``fast`` … ``state`` are Lookahead's options.

    Attributes:
        theta: the fast weights.
        phi: the slow weights.
        round: the fast weights after each step of the present round.
    """

    theta: Tensor
    inner: str = "none"
    base: str = "momentum"
    k: int = 3
    alpha: float = 0.4
    fast: str = "last"
    anchor: float = 0.0
    anchor_reduction: str = "mean"
    state: str = "carry"
    rounds: int = 0
    round: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.phi = self.theta
        self.steps = FORMULAS[self.base]()
        self.slow_state = {name: torch.zeros(()) for name in self.steps.state}
        self.oracle = Oracle(network(), lr=1.0, **INNER[self.inner][1])

    def mean(self) -> Tensor:
        return torch.stack(self.round).mean(0) if self.round else self.phi

    def gradient(self, problem: Problem) -> Tensor:
        if self.inner == "none":
            return self.oracle.gradient(self.theta, problem)
        return self.theta - self.oracle.step(self.theta, problem)

    def pull(self) -> Tensor:
        theta = self.theta.clone().requires_grad_()
        squares = (theta - self.mean().detach()) ** 2
        penalty = self.anchor * (squares.mean() if self.anchor_reduction == "mean" else squares.sum())
        (gradient,) = torch.autograd.grad(penalty, theta)
        return gradient

    def step(self, problem: Problem) -> None:
        self.theta = self.steps.step(self.theta, self.gradient(problem) + self.pull())
        self.round.append(self.theta)
        if len(self.round) == self.k:
            self.end_round()

    def end_round(self) -> None:
        end = self.mean() if self.fast == "mean" else self.theta
        self.phi = self.theta = self.phi + self.alpha * (end - self.phi)
        self.round, self.rounds = [], self.rounds + 1
        if self.state == "reset":
            self.steps = FORMULAS[self.base]()
        if self.state == "pullback":
            self.slow_state = {
                name: slow + self.alpha * (self.steps.state[name] - slow) for name, slow in self.slow_state.items()
            }
            self.steps.state = dict(self.slow_state)
