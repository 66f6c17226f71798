"""The radius of the climb as a trust region: how far the model has moved in what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from steppe.passes import View, in_backward
from steppe.radii import check_radius
from steppe.replicas import unwrapped
from steppe.trust.divergences import Divergence, tokens_that_count
from steppe.trust.divergences import divergence as as_divergence
from steppe.trust.references import Reference, arguments, ask
from steppe.trust.references import reference as as_reference
from steppe.vectors import widen

MaskOf = Callable[[tuple[Any, ...], Mapping[str, Any]], Tensor | None]


class TrustRegion:
    """ρ = d(reference, current), the mean divergence of the batch's predictions: TRAM (Sherborne et al. 2024, Eq. 7).

    It is measured while the first pass runs: before each call of the model in that pass the reference is asked about
    the same inputs, without gradient, in the model's mode, with the same random state (so the same dropout) and
    without a trace in running statistics. Where reference and model are the same, as for θ_{t−1} and θ_0 in the
    first step, d is 0 and the step is the base optimizer's. Sums of d and counts are kept, so micro-batches count as
    one batch (but a mean over *two sets* of predictions, MMD, holds on to the logits until the pass ends).

    The closure needs no change: a forward hook sees inputs and outputs. Where it cannot (a compiled ``nn.Sequential``
    calls no hooks), call :meth:`steppe.SharpnessAware.trust` in the closure.

    Args:
        model: the model as it is called in the closure.
        reference: ``"previous"`` θ_{t−1}, ``"initial"`` θ_0, ``"ema"`` the exponential mean of past weights,
            ``"noise"`` the same weights on noised inputs; or a :class:`~steppe.trust.references.Reference`.
        divergence: ``"kl"`` KL(reference ‖ current), ``"reverse"``, ``"symmetric"``, ``"mmd"``, ``"l2"``, ``"renyi"``;
            or a :class:`~steppe.trust.divergences.Divergence`.
        max_radius: a cap d ≤ ρ_max, which keeps the generalization bound.
        sigma: σ of the reference ``"noise"``.
        decay: β of the reference ``"ema"``.
        embedding: what ``"noise"`` is put on where inputs are token ids (default: found in the model).
        reference_eval: ask the reference in evaluation mode, as the authors' release does for earlier weights: d is
            then not 0 in the first step of a model with dropout.
        logits: takes the logits out of what the model returns; by default a tensor itself, ``.logits``,
            ``["logits"]``, or the first of a tuple.
        class_dim: the dimension of the classes (1 for segmentation).
        mask: ``mask(args, kwargs)`` gives a weight (0 or 1) for each row of predictions, or ``None`` for all. By
            default language models' ``labels`` (other than ``ignore_index``) and ``attention_mask``, where a call
            has them by keyword and in the shape of the predictions.
        ignore_index: the label that does not count.
        shift_labels: the model predicts the *next* token, so that row t counts where token t + 1 does. By default for
            models called ``…ForCausalLM`` or ``…LMHeadModel``, as transformers calls those that do.

    Raises:
        TypeError: there is no model.
        ValueError: an argument is not known or out of range.
    """

    measured = True

    def __init__(
        self,
        model: nn.Module,
        reference: str | Reference = "previous",
        divergence: str | Divergence = "kl",
        *,
        max_radius: float | None = None,
        sigma: float = 0.1,
        decay: float = 0.999,
        embedding: nn.Module | None = None,
        reference_eval: bool = False,
        logits: Callable[[Any], Tensor] | None = None,
        class_dim: int = -1,
        mask: MaskOf | None = None,
        ignore_index: int = -100,
        shift_labels: bool | None = None,
    ) -> None:
        self.model = watched_model(model)
        self.reference = as_reference(reference, sigma=sigma, decay=decay, embedding=embedding)
        self.divergence = as_divergence(divergence)
        self.max_radius = None if max_radius is None else check_radius(max_radius)
        self.reference_eval = reference_eval
        self.logits = logits or logits_of
        self.class_dim = class_dim
        self.mask = mask
        self.ignore_index = ignore_index
        self.shift_labels = shift_labels
        self._view: View | None = None
        self._asked = False
        self._forget()

    def _forget(self) -> None:
        self._waiting: list[Tensor | None] = []
        self._sums: list[Tensor] = []
        self._rows: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._explicit = False
        self._unasked = 0
        self._radius: Tensor | None = None

    @property
    def remembers(self) -> Mapping[str, Any]:
        return getattr(self.reference, "remembers", {})

    @property
    def needs_previous(self) -> bool:
        return bool(getattr(self.reference, "needs_previous", False))

    def attach(self, model: nn.Module) -> None:
        """Watch this model from now on."""
        self.model = watched_model(model)

    def length(self, group: Mapping[str, Any]) -> Tensor:
        """d of the last climb's pass, 0-dim on the device of the logits.

        Raises:
            RuntimeError: nothing has been measured yet.
        """
        if self._radius is None:
            raise RuntimeError("the trust region's radius is measured in a pass inside climbing(), which was not made")
        return self._radius

    @contextmanager
    def watch(self, view: View) -> Iterator[None]:
        """Measure d in the climb's pass."""
        if view.name != "climb":
            yield
            return
        self._forget()
        self._view = view
        called = called_module(self.model)
        handles = [
            called.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),  # before FSDP's own
            called.register_forward_hook(self._after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            self._view = None
            for handle in handles:
                handle.remove()
        self._radius = self._measured(view)

    def stepped(self, view: View) -> None:
        """Let the reference follow the weights."""
        follow = getattr(self.reference, "stepped", None)
        if follow is not None:
            follow(view)

    def trust(self, logits: Tensor, inputs: Any, mask: Tensor | None = None) -> None:
        """Measure d from the model's logits for ``inputs``, in place of what a hook has seen; see the engine's."""
        if self._view is None:
            return
        if not self._explicit:
            self._sums, self._rows, self._explicit = [], [], True
        self._compare(logits, self._ask(*arguments(inputs)), mask)

    # --- the hooks ---

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._view is None or self._asked or self._explicit:
            return
        if not torch.is_grad_enabled():
            self._unasked += 1
            return
        if in_backward():  # a recomputation counts where the call it repeats had no gradient (reentrant checkpointing)
            if not self._unasked:
                return
            self._unasked -= 1
        self._waiting.append(self._ask(args, kwargs))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._waiting and not self._asked:
            logits = self.logits(output)
            self._compare(logits, self._waiting.pop(), self._mask(args, kwargs, logits))

    def _ask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The reference's logits; ``None`` where the reference is the current model."""
        assert self._view is not None
        self._asked = True
        try:
            model = called_module(self.model)
            output = ask(self.reference, model, args, kwargs, self._view, evaluation=self.reference_eval)
        finally:
            self._asked = False
        return None if output is None else self.logits(output)

    @torch.no_grad()
    def _compare(self, current: Tensor, reference: Tensor | None, mask: Tensor | None) -> None:
        current = current.detach().movedim(self.class_dim, -1)
        if reference is None:
            self._sums.append(torch.zeros(2, device=current.device, dtype=widen(current).dtype))
            return
        reference = reference.movedim(self.class_dim, -1)
        weight = None if mask is None else mask.to(current.device, widen(current).dtype)
        if self.divergence.additive:
            self._sums.append(self._weighed(current, reference, weight))
        else:
            self._rows.append((_flat(current), _flat(reference), weight))

    def _weighed(self, current: Tensor, reference: Tensor, weight: Tensor | None) -> Tensor:
        """(d · count, count)."""
        d = self.divergence(current, reference, weight)
        rows = current.numel() // current.shape[-1]
        count = torch.full_like(d, rows) if weight is None else weight.sum().to(d)
        return torch.stack([d * count, count])

    def _mask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], logits: Tensor) -> Tensor | None:
        if self.mask is not None:
            return self.mask(args, kwargs)
        shape = logits.movedim(self.class_dim, -1).shape[:-1]
        if len(shape) < 2:
            return None
        found = {name: kwargs.get(name) for name in ("labels", "attention_mask")}
        fitting = {name: t for name, t in found.items() if isinstance(t, Tensor) and t.shape == shape}
        shift = predicts_next(self.model) if self.shift_labels is None else self.shift_labels
        return tokens_that_count(**fitting, ignore_index=self.ignore_index, shift=shift)

    @torch.no_grad()
    def _measured(self, view: View) -> Tensor:
        if self._rows:
            self._sums.append(self._joint(view))
        if not self._sums:
            raise RuntimeError(
                "the trust region saw no call of its model in the first pass: call the very model that was given to "
                "it (optimizer.attach(model) after wrapping or compiling it), or call optimizer.trust(logits, inputs)"
            )
        device = self._sums[0].device
        divergence, count = view.total(torch.stack([s.to(device) for s in self._sums]).sum(0))
        radius: Tensor = divergence / torch.where(count == 0, 1.0, count)
        self._sums, self._rows = [], []
        return radius if self.max_radius is None else radius.clamp_max(self.max_radius)

    def _joint(self, view: View) -> Tensor:
        """The same of all calls of all ranks together, for a divergence between sets."""
        current = torch.cat([current for current, _, _ in self._rows])
        reference = torch.cat([reference for _, reference, _ in self._rows])
        weights = [widen(c).new_ones(len(c)) if w is None else w.reshape(-1) for c, _, w in self._rows]
        return self._weighed(view.gathered(current), view.gathered(reference), view.gathered(torch.cat(weights)))

    def __repr__(self) -> str:
        cap = "" if self.max_radius is None else f", max_radius={self.max_radius}"
        return f"TrustRegion({self.reference}, {self.divergence}{cap})"


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: a tensor itself, ``.logits``, ``["logits"]``, or the first of a tuple.

    Raises:
        TypeError: none of these.
    """
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, tuple) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"no logits found in the model's output ({type(output).__name__}): pass logits=")
    return found


def predicts_next(model: nn.Module) -> bool:
    """Whether a model (inside its wrappers, PEFT's too) is one of transformers' causal language models."""
    outer = islice((unwrapped(model) or model).modules(), 4)
    return any(type(module).__name__.endswith(("ForCausalLM", "LMHeadModel")) for module in outer)


def watched_model(model: nn.Module) -> nn.Module:
    """The model itself; ``TypeError`` where it is none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be the torch.nn.Module that the closure calls, got {type(model).__name__}")
    return model


def called_module(model: nn.Module) -> nn.Module:
    """The module to hook and to ask: inside DistributedDataParallel, whose own forward talks to other ranks."""
    inner: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inner


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(-1, rows.shape[-1])
