"""An optimizer around an optimizer that stays a ``torch.optim.Optimizer`` in the eyes of everything else."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

STATE_KEY = "steppe"
"""The one top-level key that a wrapper's state dict has beside the base optimizer's."""


class OptimizerWrapper(Optimizer):
    """Shares ``param_groups``, ``state`` and ``defaults`` with the base optimizer.

    They are properties onto the base, so a scheduler attached to either drives both, and nothing of the wrapper
    lives in ``state[p]``, where a foreign key would break the lazy initialisation of AdamW and others. What the
    wrapper itself has to remember is :meth:`extra_state`.

    Args:
        base: the optimizer to wrap.

    Raises:
        TypeError: ``base`` is not an optimizer.
    """

    own_group_keys: tuple[str, ...] = ()
    """Keys of a parameter group that are the wrapper's, and outlive loading a state dict that lacks them."""

    def __init__(self, base: Optimizer) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"base must be a torch.optim.Optimizer instance, got {type(base).__name__}")
        self.base = base
        # What torch.optim.Optimizer.__init__ sets up, less the groups and the state of its own that it makes.
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._optimizer_state_dict_pre_hooks = OrderedDict()
        self._optimizer_state_dict_post_hooks = OrderedDict()
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        if name in ("train", "eval"):  # of schedule-free optimizers, which trainers call where an optimizer has them
            return getattr(self.base, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)

    def parameters(self) -> list[Tensor]:
        """All parameters, read from the groups anew: libraries swap them."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _step_by(self, scaler: torch.amp.GradScaler) -> Any:
        """``scaler.step(self)`` from within ``step()``, whose hooks, and a scheduler's count, have seen the call."""
        own = vars(self)
        bound = {name: own[name] for name in ("step",) if name in own}
        own["step"] = inspect.unwrap(type(self).step).__get__(self)
        try:
            return scaler.step(self)
        finally:
            del own["step"]
            own.update(bound)

    def __getstate__(self) -> dict[str, Any]:
        # As torch's: without hooks, and without the step() that a scheduler has bound to this very object.
        return {name: value for name, value in self.__dict__.items() if name != "step" and "_hooks" not in name}

    def extra_state(self) -> dict[str, Any]:
        """What the wrapper has to remember between steps: tensors and plain containers only."""
        return {"version": 1}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`extra_state` gave.

        Raises:
            ValueError: it was written by a newer version.
        """
        if state["version"] > 1:
            raise ValueError(f"this state was written by a newer steppe (its version is {state['version']}, ours 1)")

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, loadable by a bare base optimizer, with the key ``"steppe"`` added."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state: dict[str, Any] = {**self.base.state_dict(), STATE_KEY: self.extra_state()}
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of ours or of a bare base optimizer.

        Raises:
            ValueError: the groups do not match, or the state is a newer version's.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, dict(state_dict)) or state_dict
        extra = state_dict.get(STATE_KEY)
        if extra is not None:
            self.load_extra_state(extra)  # first: a state that is refused leaves the base as it was
        own = [{key: group[key] for key in self.own_group_keys if key in group} for group in self.param_groups]
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != STATE_KEY})
        for group, kept in zip(self.param_groups, own, strict=True):
            for key, value in kept.items():
                group.setdefault(key, value)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)
