"""Lookahead: fast weights explore with a large learning rate, slow weights follow once a round.

What happens to the weights in a step is in :mod:`steppe.averaging.rounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steppe.averaging.exchange import exchanged
from steppe.averaging.inner_state import Handling
from steppe.averaging.rounds import Fast, Made, Reduction, Rounds
from steppe.groups import parameter_keys
from steppe.memory import Memory, check_by_key
from steppe.shards import locals_of
from steppe.wrapper import STATE_KEY, OptimizerWrapper

OWN_KEY = "lookahead"
"""What is Lookahead's own in the extra state, beside the inner optimizer's."""


class Lookahead(Rounds):
    r"""Slow weights φ that follow k fast steps of any optimizer by a share α (Zhang, Lucas, Hinton and Ba 2019).

        θ ← φ;  k steps of the inner optimizer on θ;  φ ← φ + α (θ̂ − φ)

    With a large learning rate the fast weights explore (Zhang, Qi et al. 2024). θ̂ are the last of them, θ_k, or with
    ``fast="mean"`` the mean of the round's,

        m_j = (1/j) Σ_{i≤j} θ_i        θ_0 = φ is not in it

    ``anchor`` s > 0 pulls the fast weights to their history: the loss gets the penalty

        s · mean((θ − m)²)  over all n numbers of all parameters        with the gradient (2s/n) (θ − m)

    m the mean so far, detached; in a round's first step m = φ = θ, and nothing pulls. The gradient is added in this
    form, without a graph, to what the inner optimizer is about to step with: after a climb, after clipping. (It stays
    in ``.grad`` after the step.) A parameter without a gradient is left alone, though it counts in n. With a mean over
    some 10⁷ weights the pull of s = 0.01 is far below what float32 resolves: ``anchor_reduction="sum"`` has 2s (θ − m).

    The inner optimizer may be a :class:`~steppe.SharpnessAware`, whose public names are all reached through this one;
    Lookahead is the outermost. It is called as the inner one is: ``step()``, ``step(closure)``, the passes as contexts,
    ``step(closure, scaler=scaler)``, ``scaler.step(lookahead)``. A step that a ``GradScaler`` skips is no step, nor is
    one with all learning rates and all gradients 0, by which distributed checkpoints initialise an optimizer. k = 1 and
    α = 1 is the inner optimizer bit for bit.

    φ is taken at the first step, in float32 where the weights are in half precision. It takes one copy of the weights,
    and the mean one more. A parameter that is added later begins with φ = m = what it is then.

    Args:
        optimizer: the inner optimizer.
        k: steps in a round.
        alpha: α in (0, 1].
        fast: what the slow weights follow.
        anchor: s ≥ 0.
        anchor_reduction: of the squares, over all parameters that are trained (of all ranks).
        state: what becomes of the state of the optimizer that makes the steps (momentum, moments) at the end of a
            round, the three of Zhang et al. (2019): ``"carry"`` leaves it; ``"reset"`` drops that of every parameter,
            as if the optimizer were new (distributed checkpoints, which load in place, are then to be written in
            mid-round); ``"pullback"`` moves what has a parameter's shape as the weights are moved, s ← s_slow +
            α (s_fast − s_slow), from s_slow = 0 on (one more copy of that state).
        model: names the parameters in what is saved, and is needed where they are sharded (pass the wrapped model). By
            default the inner optimizer's, if it has one.

    Attributes:
        base: the inner optimizer.
        rounds: how many rounds are complete.
        round_step: how many steps of the present round are made.
        round_ended: whether the last call of :meth:`step` ended a round, for a schedule that advances once a round:
            ``if optimizer.round_ended: scheduler.step()``. (``scaler.step(lookahead)`` does not call a step that it
            skips; ``lookahead.step(scaler=scaler)`` does.)

    Raises:
        TypeError: ``optimizer`` is no optimizer, contains a Lookahead or what a library has put around an optimizer, or
            cannot be anchored (L-BFGS, whose line searches know nothing of the penalty); ``k`` is no integer.
        ValueError: an option is out of range, not known, or impossible with this optimizer (an anchor for what is
            maximised, a reset of Adagrad's state); or parameters are sharded, and there is no model.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        k: int = 15,
        alpha: float = 0.05,
        fast: Fast = "last",
        anchor: float = 0.0,
        *,
        anchor_reduction: Reduction = "mean",
        state: Handling = "carry",
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(optimizer, k, alpha, fast, anchor, anchor_reduction, state, model)
        self._showing = False

    def __repr__(self) -> str:
        anchor = f", anchor={self.anchor}, anchor_reduction={self.anchor_reduction!r}" if self.anchor else ""
        own = f"k={self.k}, alpha={self.alpha}, fast={self.fast!r}{anchor}, state={self._inner_state.handling!r}"
        return f"{type(self).__name__}({own},\n  optimizer={self.base!r})"

    def __getattr__(self, name: str) -> Any:
        # What is private belongs to one object: GradScaler asks a fused optimizer whether it unscales by itself.
        # While a copy is being made there is no base yet.
        if name.startswith("_") or "base" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return getattr(self.base, name)
        except AttributeError as error:
            inner = type(self.base).__name__
            raise AttributeError(f"neither {type(self).__name__!r} nor the {inner!r} inside has {name!r}") from error

    def attach(self, model: nn.Module | None) -> None:
        """Use ``model`` (the wrapped one, once a library has wrapped or compiled it), here and in the inner optimizer.

        Raises:
            ValueError: see :meth:`steppe.SharpnessAware.attach`; or parameters are sharded, and there is no model.
        """
        if isinstance(self.base, OptimizerWrapper) and hasattr(self.base, "attach"):
            self.base.attach(model)
        self._know(model)

    # --- the step ---

    def step(self, closure: Callable[[], Any] | None = None, **inner: Any) -> Any:
        """One step of the inner optimizer; after k of them the slow weights follow, and the fast ones begin from them.

        Args:
            closure: as the inner optimizer wants it.
            **inner: what else its ``step`` takes, such as ``scaler=`` of a sharpness-aware one.

        Returns:
            What the inner optimizer's step returns.

        Raises:
            RuntimeError: inside :meth:`slow_weights`; or there is an anchor, and a sparse gradient.
        """
        self._refuse_inside("step()", "it would train the slow weights")
        self.round_ended = False
        scaler = inner.get("scaler")
        if scaler is None or not scaler.is_enabled():
            inner.pop("scaler", None)
        elif closure is None:
            return self._step_by(scaler)  # knows whether the caller has unscaled already, and comes back here
        if closure is None and self._rests():
            return self.base.step(**inner)
        self._begin()
        innermost, made = self._innermost, Made()
        hooks = [innermost.register_step_post_hook(made)]
        if self.anchor and closure is not None and innermost is self.base:
            self._catch_up()
            closure = self._anchored(closure)  # whose gradients come after the hook before the step
        elif self.anchor:
            hooks.append(innermost.register_step_pre_hook(lambda optimizer, *_: self._pull(optimizer)))
        try:
            result = self.base.step(**inner) if closure is None else self.base.step(closure, **inner)
        finally:
            for hook in hooks:
                hook.remove()
        if made.step:
            self._advance()
        return result

    def _anchored(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def with_pull() -> Any:
            loss = closure()
            self._pull(self.base)
            return loss

        return with_pull

    # --- the slow weights ---

    @contextmanager
    def slow_weights(self) -> Iterator[None]:
        """Inside, the model holds the slow weights φ, to be evaluated or exported in mid-round::

            with optimizer.slow_weights():
                accuracy = evaluate(model)

        On exit the fast weights are back bit for bit, also after an exception. No further copy of the weights is made,
        except of those in half precision. Buffers are the model's: running statistics are those of the fast weights.
        Nothing is to write to the weights inside. Before the first step φ is what the model holds.

        Raises:
            RuntimeError: inside another ``slow_weights()``. Inside, :meth:`step`, :meth:`state_dict`,
                :meth:`load_state_dict` and copying the optimizer raise it too.
        """
        self._refuse_inside("slow_weights()")
        parameters = self.parameters() if self._begun else []
        self._ranks.check(parameters)
        slow = self._memory.tensors("slow", parameters, "weights")
        self._showing = True
        try:
            with exchanged(locals_of(parameters), slow, self._written):
                yield
        finally:
            self._showing = False

    def _refuse_inside(self, call: str, why: str = "the model holds the slow weights") -> None:
        if self._showing:
            raise RuntimeError(f"{call} inside slow_weights(): {why}; it belongs after the `with` block")

    # --- what is saved ---

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_inside("copying the optimizer")
        return super().__getstate__()

    def extra_state(self) -> dict[str, Any]:
        """The inner optimizer's extra state with, under ``"lookahead"``, what the rounds have come to.

        Keyed by parameter name, and complete also before the first step.
        """
        self._refuse_inside("saving")
        keys = parameter_keys(self.param_groups, self.model)
        memory = self._memory if self._begun else Memory()  # what is saved before the first step is no φ yet
        own = {
            "known": self._begun,
            "rounds": self.rounds,
            "round_step": self.round_step,
            "averaged": self._averaged,
            "weights": memory.state(self._remembered, keys),
            "inner": self._inner_state.state(self._innermost, keys),
        }
        inner = self.base.extra_state() if isinstance(self.base, OptimizerWrapper) else super().extra_state()
        return {**inner, OWN_KEY: own}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`extra_state` gave, here or in the inner optimizer alone: a round begins then.

        Raises:
            ValueError: it belongs to another model, or to a newer version; or it was saved in mid-round, without the
                mean that is needed here. Nothing has changed then.
        """
        self._refuse_inside("loading")
        keys = parameter_keys(self.param_groups, self.model)
        own = state.get(OWN_KEY, {"known": False})
        if own["known"]:
            self._check_own(own, keys)
        if isinstance(self.base, OptimizerWrapper):
            self.base.load_extra_state(state)
        else:
            super().load_extra_state(state)
        self._begin_anew()
        if own["known"]:
            self._begun = True
            self.rounds, self.round_step, self._averaged = (int(own[n]) for n in ("rounds", "round_step", "averaged"))
            self._memory.load(own["weights"], self._remembered, keys)
            self._inner_state.load(own["inner"], keys)

    def _check_own(self, own: Mapping[str, Any], keys: Mapping[Tensor, str]) -> None:
        saved = own["weights"]
        if own["round_step"] and self._remembered.keys() - saved.keys():
            raise ValueError(
                f"the state was saved {own['round_step']} steps into a round by a Lookahead without a mean, which is "
                "needed here: load it with fast='last' and no anchor, or save it at the end of a round"
            )
        for name in self._remembered.keys() & saved.keys():
            check_by_key(saved[name], keys)
        self._inner_state.check(own["inner"], keys)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of ours, of the inner optimizer, or of a bare base optimizer.

        With the latter two a round begins: φ is what the model holds at the next step.

        Raises:
            ValueError: the groups do not match, or see :meth:`load_extra_state`. Nothing has changed then.
        """
        self._refuse_inside("load_state_dict()")
        sizes = [len(group["params"]) for group in self.param_groups]
        saved = [len(group["params"]) for group in state_dict["param_groups"]]
        if sizes != saved:
            raise ValueError(f"the state has parameter groups of the sizes {saved}, the optimizer of {sizes}")
        super().load_state_dict(state_dict)
        if STATE_KEY not in state_dict:
            self._begin_anew()
