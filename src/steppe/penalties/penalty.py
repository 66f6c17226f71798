"""What a penalty is: a scalar of one batch to be added to the loss, with state that moves once a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

Value = Tensor | int | float

SHAPES = {
    "losses": ("N",),
    "logits": ("N", "C"),
    "features": ("N", "F"),
    "labels": ("N",),
    "domain": ("N",),
}
"""What may be asked for: N samples, C classes, F features."""

INTEGERS = ("labels", "domain")


class Penalty:
    """The base of all penalties. Write your own by naming what it needs and computing it::

        class FeatureNorm(Penalty):
            needs = ("features",)

            def compute(self, *, features):
                return 0.01 * features.square().mean()

    A sharpness-aware step calls its closure two or three times, but belongs to one batch. So a penalty is a function
    of the batch and of the state that the last step left: every call before :meth:`step` sees that same state. What
    the *first* call computes (at the weights w, not at w + ε; of several micro-batches, from the first) is what
    :meth:`step` makes the new state. A step that was begun and not made ends with :meth:`forget` instead. ``compute``
    reads state with :meth:`tensor` or from :attr:`state` and hands the new one to :meth:`propose`. Call a stateful
    penalty only on batches that are trained on, and in a pass at noised inputs (``optimizer.phase == "measure"``)
    inside :meth:`unproposed`.

    Attributes:
        needs: names of the tensors to be passed, out of ``losses`` [N], ``logits`` [N, C], ``features`` [N, F],
            ``labels`` [N] and ``domain`` [N]; the last two integers, domains of any value.
        accepts: names of what may be passed as well.
        state: what outlives a step, by name: tensors and plain numbers. Give the initial values in ``__init__``.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    accepts: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.state: dict[str, Value] = {}
        self._proposed: dict[str, Value] | None = None

    def __call__(self, **batch: Tensor | None) -> Tensor:
        """The scalar to add to the loss, its weight included; gradients flow through.

        It is computed outside autocast, in float32 or better.

        Raises:
            TypeError: a tensor that is not in :attr:`needs`, or something that is no tensor.
            ValueError: a tensor is missing, or its shape or dtype is wrong.
        """
        tensors = self._checked(batch)
        if not tensors:
            return self.compute()
        device = next(iter(tensors.values())).device
        with torch.autocast(device.type, enabled=False):
            return self.compute(**{name: widened(tensor) for name, tensor in tensors.items()})

    def compute(self, *args: Any, **kwargs: Any) -> Tensor:
        """To be written by subclasses, with one keyword-only argument for each name in :attr:`needs`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it computes")

    @property
    def just_annealed(self) -> bool:
        """Whether the weight jumps at the next step: see :class:`~steppe.penalties.AnnealedPenalty`."""
        return False

    # --- state ---

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """The state's tensor of that name, on the device and in the dtype of ``like``."""
        value = self.state[name]
        assert isinstance(value, Tensor)
        return value.to(device=like.device, dtype=like.dtype, non_blocking=True)

    def propose(self, **state: Value) -> None:
        """What the state is to be after this step. Counts in the first call since :meth:`step`; detached here."""
        if self._proposed is None:
            self._proposed = {
                name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in state.items()
            }

    @contextmanager
    def unproposed(self) -> Iterator[None]:
        """Inside, nothing counts that is proposed: for a pass that sees the batch otherwise than it is."""
        proposed = self._proposed
        try:
            yield
        finally:
            self._proposed = proposed

    def step(self) -> None:
        """The optimizer's step is made: take over what the first call of this step proposed. Call it once a step."""
        if self._proposed is not None:
            self.state.update(self._proposed)
            self._proposed = None

    def forget(self) -> None:
        """The step was begun and not made (a ``GradScaler`` skipped it, or it raised): what was proposed is dropped."""
        self._proposed = None

    def state_dict(self) -> dict[str, Any]:
        """The state between two steps: tensors (copies) and plain numbers."""
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave; a step that was begun is forgotten.

        Raises:
            ValueError: it is the state of another penalty, or one of another size.
        """
        own = {name: _form(value) for name, value in self.state.items()}
        given = {name: _form(value) for name, value in state.items()}
        if own != given:
            raise ValueError(f"this is no state of {self!r}: it holds {_listed(given)}, expected {_listed(own)}")
        self.state = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
        self.forget()

    # --- checks ---

    def _named(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What was passed: all that is needed, and nothing that is not known."""
        names = (*self.needs, *self.accepts)
        call = f"{type(self).__name__} takes {', '.join(f'{name}=' for name in names) or 'nothing'}"
        if extra := [name for name in batch if name not in names]:
            raise TypeError(f"{call}; got {', '.join(extra)} too")
        given = {name: value for name in names if (value := batch.get(name)) is not None}
        if missing := [name for name in self.needs if name not in given]:
            raise ValueError(f"{call}; missing: {', '.join(missing)}")
        return given

    def _checked(self, batch: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        tensors = self._named(batch)
        for name, tensor in tensors.items():
            check_tensor(name, tensor)
        sizes = {name: tensor.shape[0] for name, tensor in tensors.items() if name in SHAPES}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} of {size}" for name, size in sizes.items())
            raise ValueError(f"{type(self).__name__} needs all tensors of one batch, a row a sample; got {listed}")
        if 0 in sizes.values():
            raise ValueError("the batch is empty")
        return tensors


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise unless a tensor has the shape and the kind of dtype that its name promises (:data:`SHAPES`)."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if name not in SHAPES:
        return
    form = SHAPES[name]
    if tensor.dim() != len(form):
        hint = "; use reduction='none'" if name == "losses" else ""
        raise ValueError(f"{name} must have shape [{', '.join(form)}], got {list(tensor.shape)}{hint}")
    plain = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool)
    if name in INTEGERS and not plain:
        raise ValueError(f"{name} must be integers, got {tensor.dtype}")
    if name not in INTEGERS and not tensor.dtype.is_floating_point:
        raise ValueError(f"{name} must be floating-point, got {tensor.dtype}")


def check_at_least_zero(name: str, value: float) -> None:
    """Raise ``ValueError`` unless a hyper-parameter is at least 0 and finite."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def widened(tensor: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is. Gradients flow through."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _form(value: Value) -> str:
    return f"tensor{list(value.shape)}" if isinstance(value, Tensor) else "number"


def _listed(forms: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({form})" for name, form in forms.items()) or "nothing"
