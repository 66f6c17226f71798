"""SWA and EMA: running averages of the weights of all steps, by torch's own class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from steppe.averaging.average import VERSION, Weights, check_saved
from steppe.vectors import widen

Mix = Callable[[Any, Any, Any], None]


class _Running:
    """An adapter around :class:`torch.optim.swa_utils.AveragedModel`.

    That class copies the module it is given with all that hangs on it, hooks too (a trust region hooks the model, and
    its hook reaches the optimizer), and does not know of shards. So it is given a module that holds the weights alone:
    this rank's shards, in float32 where they are half precision.

    It moves its counter to the weights' device at each update, for which the host waits where that is an accelerator;
    with ``device="cpu"`` it waits for the weights.

    Args:
        model: the model that is trained, wrapped or not.
        skipped: so many steps are left out at the beginning.
        mix: AveragedModel's ``multi_avg_fn``.
        device: where the average is kept; ``None`` for beside the weights.
        settings: what decides on the average, by the names of the arguments.
    """

    def __init__(
        self, model: nn.Module, skipped: int, mix: Mix, device: torch.device | str | None, **settings: float
    ) -> None:
        self.start = self.end = 0
        self._settings = settings
        self._weights = Weights(model)
        self._skipped = skipped
        self._mix = mix
        self._device = None if device is None else torch.device(device)
        self._steps = 0
        self._averaged: AveragedModel | None = None

    def update(self) -> None:
        """The optimizer has made a step: take in the weights as they are now."""
        self._steps += 1
        if self._steps <= self._skipped:
            return
        weights = _holder([widen(w) for w in self._weights.read()])
        if self._averaged is None:
            self._averaged = self._made(weights)
        self._averaged.update_parameters(weights)

    def segment(self, val_loss: float) -> None:
        """Nothing: the average does not ask for the validation loss."""

    def finish(self) -> dict[str, Tensor]:
        """The averaged state dict, for ``model.load_state_dict``: parameters averaged, buffers as they are now.

        It changes nothing: more steps may follow, and another call. Where no step was averaged, the weights are, with a
        warning, the present ones.
        """
        if self._averaged is None:
            made = f"{self._steps} steps were made, and {self._skipped} are left out" if self._steps else "no step yet"
            message = f"{type(self).__name__} has nothing to average ({made}): the present weights are returned"
            warnings.warn(message, stacklevel=2)
            averages, self.start, self.end = self._weights.read(), 0, 0
        else:
            averages, self.start, self.end = self._tensors(), self._skipped + 1, self._steps
        copies = [average.clone() for average in averages]
        return self._weights.in_model(dict(zip(self._weights.names(), copies, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, to be saved before the next step: the tensors are no copies."""
        return {
            "version": VERSION,
            "average": type(self).__name__,
            "settings": dict(self._settings),
            "steps": self._steps,
            "weights": self._weights.save({"average": self._tensors()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, bit for bit, from what :meth:`state_dict` gave.

        Raises:
            ValueError: it is the state of another kind of average, of other settings or of another model, or a newer
                version's. Nothing is changed then.
        """
        check_saved(state, self, self._settings)
        number = max(0, state["steps"] - self._skipped)
        self._weights.check(state["weights"], ["average"] if number else [])
        self._steps, self.start, self.end, self._averaged = state["steps"], 0, 0, None
        if number:
            self._averaged = self._made(_holder(self._weights.load(state["weights"]["average"], self._device)))
            self._averaged.n_averaged.fill_(number)

    def _made(self, weights: nn.ParameterList) -> AveragedModel:
        return AveragedModel(weights, self._device, multi_avg_fn=self._mix)

    def _tensors(self) -> list[Tensor]:
        return [] if self._averaged is None else [p.detach() for p in self._averaged.module.parameters()]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self._settings.items())})"


class SWA(_Running):
    """Stochastic weight averaging (Izmailov et al., UAI 2018): the mean of the weights after each step,

        (1/(t − start)) Σ_{start < i ≤ t} w_i,

    :class:`torch.optim.swa_utils.AveragedModel` with ``get_swa_multi_avg_fn``. One copy of the weights, in their dtype
    (float32 for half precision). The validation loss is not asked for. Works under DDP, and on the shards of FSDP2.

    Args:
        model: the model that is trained, wrapped or not.
        start: the first ``start`` steps are left out.
        device: where the average is kept, ``"cpu"`` to spare an accelerator (every step then waits for the weights to
            arrive there); by default beside the weights.

    Attributes:
        start: after :meth:`finish`, the first step whose weights are in the average, counted from 1; 0 for none.
        end: the last one.

    Raises:
        ValueError: ``start`` is no whole number of at least 0, or the model has no parameters.
    """

    def __init__(self, model: nn.Module, start: int = 0, *, device: torch.device | str | None = None) -> None:
        if not start >= 0 or start % 1:
            raise ValueError(f"start must be a whole number of steps, at least 0, got {start}")
        mean: Mix = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

        # torch's number is a tensor whose inverse is a float32: too coarse for float64, and the host waits for it.
        def mix(averages: Any, weights: Any, _: Any) -> None:
            mean(averages, weights, self._steps - self._skipped - 1)

        super().__init__(model, int(start), mix, device, start=int(start))


class EMA(_Running):
    """The exponential moving average of the weights after each step,

        a_1 = w_1,    a_t = decay · a_{t−1} + (1 − decay) · w_t,

    :class:`torch.optim.swa_utils.AveragedModel` with ``get_ema_multi_avg_fn``. As there, it begins with the weights
    after the first step, not with those before it, and is not corrected for that: w_1 weighs decay^(t−1). One copy of
    the weights, in their dtype (float32 for half precision, in which 1 − decay would be lost). The validation loss is
    not asked for. Works under DDP, and on the shards of FSDP2.

    Args:
        model: the model that is trained, wrapped or not.
        decay: in [0, 1).
        device: where the average is kept, ``"cpu"`` to spare an accelerator (every step then waits for the weights to
            arrive there); by default beside the weights.

    Attributes:
        start: after :meth:`finish`, 1: the first step whose weights are in the average; 0 for none.
        end: the last one.

    Raises:
        ValueError: ``decay`` is out of range, or the model has no parameters.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, device: torch.device | str | None = None) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        mix: Mix = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(model, 0, mix, device, decay=float(decay))


def _holder(weights: list[Tensor]) -> nn.ParameterList:
    """A module that holds tensors and nothing else: the same memory."""
    return nn.ParameterList([nn.Parameter(w, requires_grad=False) for w in weights])
