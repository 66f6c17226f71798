"""A sum of words, built: one object that a training loop calls, whatever the words are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe.averaging import Average, Lookahead
from steppe.penalties import Mixup, Penalty, TrustPenalty
from steppe.sharpness import SharpnessAware

if TYPE_CHECKING:
    from steppe.training.joining import Joint


class Method:
    """The optimizer, the penalties on the loss, and what is done to the batch. Made by :func:`steppe.build`.

    Args:
        name: the canonical sum of words.
        optimizer: a sharpness-aware optimizer (one whose radius is 0 is the base optimizer), or Lookahead around one.
        penalties: word → penalty.
        mixup: what mixes the batch, where a word asks for it::

            if method.mixup is not None:
                mixed = method.mixup(x, y, domain)      # once a step, before the closure
                # in the closure: losses = mixed.losses(model(mixed.x)), mixed.domain

        average: the average of the weights that a word asks for. It sees every step that :meth:`step` makes; it is
            to be told of evaluations by :meth:`evaluated`, and asked at the end by :meth:`averaged`.

    Attributes:
        values: word → the penalty of the last call of :meth:`loss`, its weight included, detached.
    """

    def __init__(
        self,
        name: str,
        optimizer: SharpnessAware | Lookahead,
        penalties: Mapping[str, Penalty],
        mixup: Mixup | None = None,
        average: Average | None = None,
    ) -> None:
        self.name = name
        self.lookahead = optimizer if isinstance(optimizer, Lookahead) else None
        # Lookahead has whatever the optimizer inside has.
        self.optimizer = cast(SharpnessAware, optimizer)
        self.penalties = dict(penalties)
        self.mixup = mixup
        self.average = average
        self.values: dict[str, Tensor] = {}

    @property
    def base(self) -> Optimizer:
        """The optimizer that makes the step."""
        inner = self.optimizer if self.lookahead is None else self.lookahead.base
        return cast(SharpnessAware, inner).base

    @property
    def needs(self) -> frozenset[str]:
        """What the penalties are to be given in :meth:`loss`, beside losses and domain."""
        return frozenset(name for penalty in self.penalties.values() for name in penalty.needs) - {"losses", "domain"}

    def attach(self, model: nn.Module) -> None:
        """Use ``model`` (the wrapped one, once a library has wrapped or compiled it) from now on."""
        self.optimizer.attach(model)
        for penalty in self._trusting:
            penalty.attach(model)

    def remember_randomness(self) -> None:
        """To be called right before the model, in every pass, where it has dropout.

        The reference of ``trpo``, ``r3f`` and ``mesa``, which is asked after the model, then has the model's masks.
        """
        for penalty in self._trusting:
            penalty.remember_randomness()

    def join(self, joint: Joint) -> None:
        """The coming :meth:`loss` is given ``logits`` of all processes' rows, and ``inputs`` that are this one's."""
        for penalty in self._trusting:
            penalty.joined = partial(joint.gather, differentiable=False)

    @property
    def _trusting(self) -> list[TrustPenalty]:
        return [penalty for penalty in self.penalties.values() if isinstance(penalty, TrustPenalty)]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def loss(self, losses: Tensor, domain: Tensor | None = None, **batch: Tensor) -> Tensor:
        """The loss to call ``backward()`` on, in every pass: the optimizer's objective and all penalties.

        Its value is L + Σ penalties at the weights of the pass; its gradient is that too, except that while climbing
        L's is the objective's (:meth:`steppe.SharpnessAware.objective`).

        Args:
            losses: one a sample, shape ``[N]``.
            domain: the domain of each sample, integers of shape ``[N]``.
            **batch: what :attr:`needs` names: ``logits``, ``features``, ``labels``, ``inputs``; for TRPO, R3F and MESA
                also ``mask``; more does no harm.

        Raises:
            ValueError: a penalty's tensor is missing, or a shape or dtype is wrong.
        """
        loss = self.optimizer.objective(losses, domain)
        given = {"losses": losses, "domain": domain, **batch}
        self.values = {}
        for word, penalty in self.penalties.items():
            optional = {name: given[name] for name in getattr(penalty, "accepts", ()) if name in given}
            # A measuring pass comes first, but at noised inputs.
            with penalty.unproposed() if self.optimizer.phase == "measure" else nullcontext():
                value = penalty(**{name: given.get(name) for name in penalty.needs}, **optional)
            self.values[word] = value.detach()
            loss = loss + value
        return loss

    def step(self, closure: Callable[[], Any], *, scaler: torch.amp.GradScaler | None = None) -> Any:
        """One step of the optimizer; the state of penalties moves along.

        Where a penalty's weight jumps at the end of its annealing, the base optimizer's state is cleared, as DomainBed
        does: Adam divides by the size of past gradients. A step that ``scaler`` skips moves no penalty's state either
        (unless the base optimizer is a fused one, which skips on the device, where the host does not see it).

        Args:
            closure: zeroes the gradients, computes :meth:`loss`, calls ``backward()`` (on the scaled loss where there
                is a scaler) and returns the loss.
            scaler: an ``fp16`` ``GradScaler``; ``scaler.update()`` stays with the caller.

        Returns:
            What the closure returned at w.
        """
        made: list[bool] = []
        hook = self.base.register_step_post_hook(lambda *_: made.append(True))
        try:
            loss = self.optimizer.step(closure, scaler=scaler)
        finally:
            hook.remove()
            if self.mixup is not None:
                self.mixup.step()
            if not made:
                for penalty in self.penalties.values():
                    penalty.forget()
        if made:
            self._made()
        return loss

    def _made(self) -> None:
        for penalty in self.penalties.values():
            penalty.step()
        if any(penalty.just_annealed for penalty in self.penalties.values()):
            self.base.state.clear()
        if self.average is not None:
            self.average.update()

    def settled(self) -> AbstractContextManager[None]:
        """Inside, the model holds the weights to evaluate in mid-training: the slow ones of Lookahead, else its own."""
        return nullcontext() if self.lookahead is None else self.lookahead.slow_weights()

    def evaluated(self, val_loss: float) -> None:
        """An evaluation gave this loss on validation data: what SWAD's valley is found by.

        Args:
            val_loss: the mean loss, of the weights as they were in training.
        """
        if self.average is not None:
            self.average.segment(val_loss)

    def averaged(self) -> dict[str, Tensor] | None:
        """The state dict of the averaged weights, to be loaded at the end; ``None`` where nothing is averaged.

        Running statistics of batch normalisation are the model's present ones: re-estimate them
        (:func:`steppe.averaging.reestimate_batch_norm`).
        """
        return None if self.average is None else self.average.finish()

    def state_dict(self) -> dict[str, Any]:
        """Everything that outlives a step, as tensors and plain containers."""
        states = {word: penalty.state_dict() for word, penalty in self.penalties.items()}
        average = None if self.average is None else self.average.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "penalties": states, "average": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what :meth:`state_dict` gave.

        Raises:
            ValueError: it is the state of another sum of words.
        """
        if state["penalties"].keys() != self.penalties.keys():
            found, own = (", ".join(words) or "none" for words in (state["penalties"], self.penalties))
            raise ValueError(f"the state has the penalties {found}, {self.name!r} has {own}")
        average = state["average"]
        if (average is None) != (self.average is None):
            raise ValueError(
                f"the state has {'no' if average is None else 'an'} average of weights, unlike {self.name!r}"
            )
        if self.average is not None:
            self.average.load_state_dict(average)
        self.optimizer.load_state_dict(state["optimizer"])
        for word, penalty in self.penalties.items():
            penalty.load_state_dict(state["penalties"][word])

    def __repr__(self) -> str:
        parts = (*self.penalties.values(), self.mixup, self.average)
        more = "".join(f",\n  {part}" for part in parts if part is not None)
        return f"Method({self.name!r}, {self.optimizer}{more})"
