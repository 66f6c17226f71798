"""Inside Lookahead: what a round keeps, how the fast weights are pulled to its mean, and how it ends."""

from __future__ import annotations

from operator import index
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from steppe.averaging.inner_state import Handling, InnerState
from steppe.averaging.portions import add_pull, approach, pull_back
from steppe.checks import check_model
from steppe.errors import unknown_name
from steppe.memory import Memory, Start
from steppe.persistent import unshare_gradients
from steppe.replicas import Replicas
from steppe.shards import local, locals_of, total
from steppe.wrapper import OptimizerWrapper

Fast = Literal["last", "mean"]
Reduction = Literal["mean", "sum"]


class Rounds(OptimizerWrapper):
    """What :class:`steppe.Lookahead`, whose docstring has the arguments, is made of."""

    rounds: int
    round_step: int
    round_ended: bool

    def __init__(
        self,
        optimizer: Optimizer,
        k: int,
        alpha: float,
        fast: Fast,
        anchor: float,
        anchor_reduction: Reduction,
        state: Handling,
        model: nn.Module | None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Lookahead goes around a torch.optim.Optimizer instance, got {type(optimizer).__name__}")
        super().__init__(optimizer)
        innermost = self._innermost
        if not hasattr(innermost, "_optimizer_step_post_hooks"):  # accelerate's, which imitates one
            raise TypeError(f"{type(innermost).__name__} calls no hooks: put Lookahead around what it wraps")
        self.k = _steps(k)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be larger than 0 and at most 1, got {alpha}")
        if not 0 <= anchor < float("inf"):
            raise ValueError(f"anchor must be at least 0 and finite, got {anchor}")
        if anchor and isinstance(innermost, LBFGS):
            raise TypeError("LBFGS searches along lines by the closure's loss, which lacks the anchor's penalty")
        self.alpha = float(alpha)
        self.fast = _one_of("fast", fast, get_args(Fast))
        self.anchor = float(anchor)
        self.anchor_reduction = _one_of("anchor_reduction", anchor_reduction, get_args(Reduction))
        self._inner_state = InnerState(state, innermost)
        self._begun: bool
        self._memory: Memory
        self._begin_anew()
        self._check_groups()
        if model is None and isinstance(optimizer, OptimizerWrapper):
            model = getattr(optimizer, "model", None)
        self._know(model)

    def _know(self, model: nn.Module | None) -> None:
        check_model(model)
        self.model = model
        self._ranks = Replicas(model, self.parameters(), True)

    @property
    def _innermost(self) -> Optimizer:
        """The optimizer that makes the steps."""
        inner = self.base
        while isinstance(inner, OptimizerWrapper):
            if isinstance(inner, Rounds):
                raise TypeError("the optimizer is, or contains, a Lookahead already: rounds do not nest")
            inner = inner.base
        return inner

    @property
    def _averages(self) -> bool:
        return self.fast == "mean" or self.anchor > 0

    @property
    def _remembered(self) -> dict[str, Start]:
        """What is kept from step to step, one tensor a parameter each, and what it is at first."""
        return {"slow": "weights", "mean": "weights"} if self._averages else {"slow": "weights"}

    def _begin_anew(self) -> None:
        """The first round is to come."""
        self.rounds = self.round_step = 0
        self._averaged = 0  # fast weights of this round that are in the mean: the last may be missing
        self.round_ended = self._begun = False
        self._memory = Memory()
        self._inner_state.forget()

    def _rests(self) -> bool:
        """Whether a step would move nothing, all learning rates and gradients being 0.

        torch's distributed checkpoints make such a step to initialise an optimizer's state, some whenever they are
        saved. It leaves no trace. A rate of 0 alone is no reason: a warm-up may begin with it, and move on with rounds.
        """
        rates = [group.get("lr") for group in self.param_groups]
        if not all(rate is not None and getattr(rate, "is_cpu", True) and rate == 0 for rate in rates):
            return False
        reached = [(p, p.grad) for p in self.parameters() if p.grad is not None]
        sizes = [local(gradient).abs().sum() for _, gradient in reached]
        return not sizes or not bool(total(sizes, [p for p, _ in reached]))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _begin(self) -> None:
        """Have φ and, where there is one, a mean for every parameter there is now."""
        parameters = self.parameters()
        self._ranks.check(parameters)
        if not self._begun:  # weights may have been loaded since a first step that came to nothing
            self._memory = Memory()
        self._memory.keep_only(parameters)
        for name, start in self._remembered.items():
            self._memory.tensors(name, parameters, start)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _pull(self, optimizer: Optimizer) -> None:
        """Add the gradient of the anchor's penalty to those that ``optimizer`` is about to step with."""
        if self.round_step == 0:  # θ = φ = m
            return
        self._check_groups()
        trained = [p for p in self.parameters() if p.requires_grad]
        reached = [p for p in trained if p.grad is not None]
        unshare_gradients(reached)
        gradients = [local(p.grad) for p in reached if p.grad is not None]
        if any(gradient.layout != torch.strided for gradient in gradients):
            raise RuntimeError("sparse gradients cannot be anchored: build the embedding with sparse=False")
        numbers = sum(p.numel() for p in trained) if self.anchor_reduction == "mean" else 1
        share = 1 / (self._averaged + 1) if self._averaged < self.round_step else None
        if share is not None:
            apart = set(reached)
            self._average([p for p in self.parameters() if p not in apart], share)
        add_pull(
            gradients,
            locals_of(reached),
            self._memory.tensors("mean", reached, "weights"),
            2 * self.anchor / max(numbers, 1),
            share=share,
            # Of a fused optimizer that a GradScaler calls: it divides by the scale itself.
            scale=getattr(optimizer, "grad_scale", None),
        )
        self._averaged = self.round_step

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _catch_up(self) -> None:
        """Take the last fast weights into the mean, where the pull, which does it in passing, is to find it there."""
        if self._averaged < self.round_step:
            self._average(self.parameters(), 1 / (self._averaged + 1))
            self._averaged = self.round_step

    def _average(self, parameters: list[Tensor], share: float) -> None:
        approach(self._memory.tensors("mean", parameters, "weights"), locals_of(parameters), share)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _advance(self) -> None:
        """A step was made."""
        self._begun = True
        self.round_step += 1
        self.round_ended = self.round_step >= self.k
        if self.fast == "mean" and (self.round_ended or not self.anchor):
            self._catch_up()
        if self.round_ended:
            parameters = self.parameters()
            weights = locals_of(parameters)
            followed = self._memory.tensors("mean", parameters, "weights") if self.fast == "mean" else weights
            pull_back(self._memory.tensors("slow", parameters, "weights"), followed, weights, self.alpha)
            self._inner_state.end_round(self._innermost, parameters, self.alpha)
            self.rounds, self.round_step, self._averaged = self.rounds + 1, 0, 0
            self._written()

    def _written(self) -> None:
        """After every write to the weights: casts and gathered copies of what they were are stale."""
        torch.clear_autocast_cache()
        self._ranks.reshard()

    def _check_groups(self) -> None:
        if self.anchor and any(group.get("maximize") for group in self.param_groups):
            raise ValueError("maximize=True would push the weights from the anchor: minimise the negative instead")


class Made:
    """A hook after a step: whether one was made. A fused optimizer that is told of an overflow skips it by itself.

    Reading that waits for the device, as ``GradScaler`` does before it calls any other optimizer.
    """

    def __init__(self) -> None:
        self.step = False

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        overflow: Tensor | None = getattr(optimizer, "found_inf", None)
        self.step = overflow is None or not bool(overflow)


def _steps(k: Any) -> int:
    try:
        steps = index(k)
    except TypeError:
        steps = None
    if steps is None or isinstance(k, bool):
        raise TypeError(f"k must be an integer, got {k!r}")
    if steps < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return steps


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise unknown_name(option, str(value), known)
    return value
