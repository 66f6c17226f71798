"""Trust-region regularizers: predictions are to stay near those of a reference, by a term in the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steppe.displacement import Displacement
from steppe.groups import parameter_keys
from steppe.memory import Memory, Start, check_by_key
from steppe.passes import View
from steppe.penalties.penalty import Penalty, check_at_least_zero, widened
from steppe.randomness import RandomState, coming_seed
from steppe.replicas import Replicas
from steppe.running_statistics import RunningStatistics
from steppe.shards import local, locals_of
from steppe.trust.divergences import Divergence
from steppe.trust.divergences import divergence as as_divergence
from steppe.trust.references import Reference, arguments, ask
from steppe.trust.references import reference as as_reference
from steppe.trust.region import called_module, logits_of, watched_model


class TrustPenalty(Penalty):
    r"""weight · d(reference, current), the mean divergence of a batch's predictions from those of a reference::

        r3f = steppe.penalties.R3F(model)

        logits = model(x)                                                  # in the closure, with losses from them
        loss = optimizer.objective(losses, domain) + r3f(logits=logits, inputs=x)
        r3f.step()                                                         # after optimizer.step(closure)

    The same d that TRAM takes for a radius (:class:`steppe.TrustRegion`), as a plain regularizer: what TRAM's paper
    compares itself with (Sherborne et al. 2024). Each call is one more forward pass, without gradient, in the model's
    mode; random state and running statistics stay as they were. Gradients flow through ``logits`` alone. Call it
    inside the same ``torch.autocast`` as the model, so that both are rounded alike.

    In a sharpness-aware step all passes have one reference: the earlier weights, or the noise, with which the step
    began. :meth:`step` moves it. Until then all calls with inputs of one size see the same noise, micro-batches too.
    Call it in the first pass too: the weights that a step's first call finds are the next step's θ_{t−1}.

    Dropout: the model has drawn its masks before the reference does, which draws others. So d holds the difference of
    the masks too, also where the weights are the same; the authors' R3F has it so. With :meth:`remember_randomness`
    right before the model, both have the same masks, as in TRAM.

    Earlier weights are those of the parameters that require a gradient: one copy for ``initial`` and ``ema``, two for
    ``previous`` (θ_{t−1}, and θ_t for the next step).

    Args:
        model: the model as it is called in the closure (wrapped, where it is).
        reference: ``"previous"`` θ_{t−1} (in the first step there is none, and d is 0), ``"initial"`` θ_0, ``"ema"``
            the exponential mean of past weights, ``"noise"`` the same weights on noised inputs; or a
            :class:`~steppe.trust.references.Reference`.
        divergence: ``"kl"`` KL(reference ‖ current), ``"reverse"``, ``"symmetric"``, ``"mmd"``, ``"l2"``, ``"renyi"``;
            or a :class:`~steppe.trust.Divergence`.
        weight: ≥ 0; TRAM's paper uses 0.1 for all three of its baselines.
        sigma: σ of the reference ``"noise"``.
        decay: β of the reference ``"ema"``.
        embedding: what ``"noise"`` is put on where inputs are token ids (default: found in the model).
        reference_eval: ask the reference in evaluation mode.
        class_dim: the dimension of the classes (1 for segmentation).
        logits: takes the logits out of what the model returns; by default a tensor itself, ``.logits``,
            ``["logits"]``, or the first of a tuple.

    Raises:
        TypeError: there is no model.
        ValueError: an argument is not known or out of range.
    """

    needs = ("logits", "inputs")
    accepts = ("mask",)

    def __init__(
        self,
        model: nn.Module,
        reference: str | Reference = "previous",
        divergence: str | Divergence = "kl",
        weight: float = 0.1,
        *,
        sigma: float = 0.1,
        decay: float = 0.999,
        embedding: nn.Module | None = None,
        reference_eval: bool = False,
        class_dim: int = -1,
        logits: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_at_least_zero("weight", weight)
        self.reference = as_reference(reference, sigma=sigma, decay=decay, embedding=embedding)
        self.divergence = as_divergence(divergence)
        self.weight = weight
        self.reference_eval = reference_eval
        self.class_dim = class_dim
        self.logits = logits or logits_of
        self.state.update(steps=0, has_previous=0)
        self._starts: dict[str, Start] = dict(getattr(self.reference, "remembers", {}))
        if getattr(self.reference, "needs_previous", False):
            self._starts["previous"] = "weights"
        self._memory = Memory()
        self._random: RandomState | None = None
        self._seed: int | None = None  # of the step under way; None until its first call
        self.joined: Callable[[Tensor], Tensor] | None = None
        """Gathers a reference's rows, where processes hold parts of a batch and ``logits`` are those of all."""
        self.attach(model)

    def attach(self, model: nn.Module) -> None:
        """Ask this model from now on (the wrapped one, once a library has wrapped or compiled it)."""
        self.model = watched_model(model)
        # Taken here: between forward and backward pass, FSDP shows other tensors in place of the shards.
        self._all = list(model.parameters())
        self._memory.keep_only(self._all)
        self._statistics = RunningStatistics(model)
        self._displacement = Displacement()
        self._displacement.reshard = Replicas(model, self._all, None).reshard

    def __call__(self, **batch: Any) -> Tensor:
        """The scalar to add to the loss; see :meth:`compute` for what to pass.

        Raises:
            TypeError: an argument is not known, or ``logits`` is no tensor.
            ValueError: ``logits`` or ``inputs`` is missing, or shapes do not fit.
        """
        return self.compute(**self._checked(batch))  # the reference is asked within the caller's autocast

    def compute(self, *, logits: Tensor, inputs: Any, mask: Tensor | None = None) -> Tensor:
        """weight · d, 0-dim, in float32 or better.

        Args:
            logits: what the model said, ``[..., C]``.
            inputs: what it was called with: a tensor, a tuple, or a dict of keyword arguments.
            mask: a weight (0 or 1) for each row of predictions, shape ``[...]``; for language models
                :func:`steppe.trust.tokens_that_count` makes it. Absent, all rows count.
        """
        reference = self._ask(inputs)
        if reference is None:  # it is the current model: 0, with gradient 0
            return widened(logits[..., :0]).sum()
        if self.joined is not None:
            reference = self.joined(reference)
        current, reference = (tensor.movedim(self.class_dim, -1) for tensor in (logits, reference))
        with torch.autocast(logits.device.type, enabled=False):
            counts = None if mask is None else mask.to(current.device)
            return self.weight * self.divergence(current, reference, counts)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def remember_randomness(self) -> None:
        """The next call of the penalty asks its reference with the random state of now, so with the same dropout.

        To be called right before the model is, in every pass.
        """
        self._random = RandomState.now(self._devices)

    def step(self) -> None:
        """The optimizer's step is made: the reference follows. Call it once a step."""
        super().step()
        if "previous" in self._starts and self._seed is not None:
            self._memory.commit()
            self.state["has_previous"] = 1
        if hasattr(self.reference, "stepped"):
            self.reference.stepped(self._view())
        self.state["steps"] = int(self.state["steps"]) + 1
        self._seed = self._random = None

    def forget(self) -> None:
        super().forget()
        self._seed = self._random = None

    def state_dict(self) -> dict[str, Any]:
        """The state between two steps, with copies of earlier weights by name: complete also before the first step.

        The noise is drawn from torch's generator on the CPU, which is the caller's to save.
        """
        memory = self._memory.state(self._starts, self._keys())
        copies = {name: {key: t.detach().clone() for key, t in tensors.items()} for name, tensors in memory.items()}
        return {**super().state_dict(), "memory": copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        memory, keys = state.get("memory", {}), self._keys()
        if memory.keys() != self._starts.keys():
            remembered = [", ".join(names) or "nothing" for names in (memory, self._starts)]
            raise ValueError(f"this is no state of {self!r}: it remembers {remembered[0]}, expected {remembered[1]}")
        for tensors in memory.values():
            check_by_key(tensors, keys)
        super().load_state_dict({key: value for key, value in state.items() if key != "memory"})
        self._memory.load(memory, self._starts, keys)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reference}, {self.divergence}, weight={self.weight})"

    # --- the reference ---

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _ask(self, inputs: Any) -> Tensor | None:
        """The reference's logits; ``None`` where the reference is the current model."""
        if self._seed is None:
            self._begin()
        args, kwargs = arguments(inputs)
        random, self._random = self._random, None
        model, view = called_module(self.model), self._view()
        output = ask(self.reference, model, args, kwargs, view, evaluation=self.reference_eval, random=random)
        return None if output is None else self.logits(output)

    def _begin(self) -> None:
        """The first call of a step: the weights are still w, which the next step calls the previous ones."""
        parameters = self._parameters
        if "previous" in self._starts and parameters:
            kept = self._memory.tensors("previous", parameters, "weights", deferred=True)
            torch._foreach_copy_(kept, locals_of(parameters))
        self._seed = coming_seed() + int(self.state["steps"])  # other noise at the next step, whoever else draws

    def _view(self) -> View:
        parameters = self._parameters
        previous = None
        if self.state["has_previous"]:
            kept = self._memory.tensors("previous", parameters, "weights")
            previous = dict(zip(parameters, kept, strict=True))
        return View(
            name="climb",
            parameters=parameters,
            remember=lambda name: self._memory.tensors(name, parameters, self._starts[name]),
            previous=previous,
            replaced=self._displacement.replaced,
            unrecorded=self._statistics.preserved,
            total=lambda tensor: tensor,
            gathered=lambda rows: rows,
            seed=lambda: self._seed or 0,
        )

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for p in self._all if p.requires_grad]

    @property
    def _devices(self) -> set[torch.device]:
        return {local(p).device for p in self._all}

    def _keys(self) -> dict[Tensor, str]:
        return parameter_keys([{"params": self._parameters}], self.model)

    def _checked(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        given = self._named(batch)
        logits = given["logits"]
        if not isinstance(logits, Tensor):
            raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
        if not logits.dtype.is_floating_point or logits.dim() < 2:
            raise ValueError(f"logits must be floating-point, [..., C]; got {list(logits.shape)} of {logits.dtype}")
        return given


class TRPO(TrustPenalty):
    """weight · KL(p at θ_{t−1} ‖ p): what is predicted changes slowly (after Schulman et al., ICML 2015).

    Args:
        model, weight, divergence, options: those of :class:`TrustPenalty`.
    """

    def __init__(
        self, model: nn.Module, weight: float = 0.1, divergence: str | Divergence = "kl", **options: Any
    ) -> None:
        super().__init__(model, "previous", divergence, weight, **options)


class R3F(TrustPenalty):
    """weight · [KL(p at x + z ‖ p) + KL(p ‖ p at x + z)], z ~ N(0, σ²) (Aghajanyan et al., ICLR 2021).

    Weight and σ are those of TRAM's comparison. The authors' program has σ = 1e-5 on the embeddings (or uniform noise)
    and weight 1, and differentiates in both predictions; here those at x + z are a constant, as for all references.

    Args:
        model, weight, divergence, options: those of :class:`TrustPenalty`, ``sigma`` (0.1) among them.
    """

    def __init__(
        self, model: nn.Module, weight: float = 0.1, divergence: str | Divergence = "symmetric", **options: Any
    ) -> None:
        super().__init__(model, "noise", divergence, weight, **options)


class MESA(TrustPenalty):
    """weight · KL(p at θ̄ ‖ p), θ̄ ← β θ̄ + (1 − β) θ after each step (Du et al., NeurIPS 2022).

    Args:
        model, weight, divergence, options: those of :class:`TrustPenalty`, ``decay`` β (0.999) among them.
    """

    def __init__(
        self, model: nn.Module, weight: float = 0.1, divergence: str | Divergence = "kl", **options: Any
    ) -> None:
        super().__init__(model, "ema", divergence, weight, **options)
