"""Inside a sharpness-aware step: one pass, what happens between two, and what is remembered from step to step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from steppe.batches import Share
from steppe.checks import check_groups, check_model, fault_in_bare, missing_pass
from steppe.climb import Climb, Ground, skipped
from steppe.combining import Combining
from steppe.descents import Descent
from steppe.geometries import Geometry
from steppe.groups import parameter_keys, parameter_names
from steppe.memory import Memories, check_by_key, copy_by_key
from steppe.objectives import Objective
from steppe.parts import SLOTS, Parts
from steppe.passes import PassName, View
from steppe.persistent import KeptGradient
from steppe.radii import Radius, check_radius
from steppe.randomness import coming_seed
from steppe.replicas import Replicas
from steppe.running_statistics import RunningStatistics
from steppe.shards import as_sharded, local
from steppe.stage import Stage
from steppe.vectors import HALF
from steppe.weighing import Accumulate, Weighing
from steppe.wrapper import OptimizerWrapper

SEEDS = 10_007
"""How many seeds a step may give before they overlap with the next one's."""


class Engine(OptimizerWrapper):
    """What :class:`steppe.SharpnessAware`, whose docstring has the arguments, is made of."""

    own_group_keys = ("rho",)

    def __init__(
        self,
        base: Optimizer,
        *,
        objective: Objective | None = None,
        geometry: Geometry | None = None,
        radius: float | Radius = 0.05,
        descent: Descent | None = None,
        model: nn.Module | None = None,
        global_ascent: bool | None = None,
        ascent_fraction: float = 1.0,
        m: int = 1,
        accumulate: Accumulate = "each",
        same_dropout: bool = False,
        climb_dtype: torch.dtype | None = None,
        diagnose: bool = False,
    ) -> None:
        if isinstance(base, Engine):
            raise TypeError("base is sharpness-aware already: compose the parts of one SharpnessAware instead")
        if isinstance(base, LBFGS):
            raise TypeError("LBFGS evaluates a closure of its own, which a sharpness-aware step has no place for")
        super().__init__(base)
        check_groups(base.param_groups)
        self.parts = Parts.of(objective, geometry, radius, descent)
        self.diagnose = diagnose
        self.same_dropout = same_dropout
        self._share = Share(ascent_fraction, m)
        if m > 1 and self.parts.needs_previous:
            raise ValueError("m > 1 climbs several times a step, which leaves no copy of the weights one step ago")
        self._global_ascent = True if global_ascent is None and self.parts.averages else global_ascent
        self._weighing = Weighing(self.parts.objective, accumulate)
        self._memories = Memories({slot: self.parts.remembers(slot) for slot in SLOTS})
        self._climb = Climb(climb_dtype)
        self._combining = Combining(self.parts, self._share, self._memories)
        self._measured = KeptGradient()
        self._stage = Stage()
        # The first parameter's, to recognise a gradient that was added to it.
        self._descent_gradient: Tensor | None = None
        self._steps = 0
        self._has_previous = False
        self._warned_plain_step = False
        self.attach(model)

    def attach(self, model: nn.Module | None) -> None:
        """Use ``model`` (the wrapped one, once a library has wrapped or compiled it) from now on.

        Raises:
            TypeError: it is no model.
            ValueError: a part needs names and neither ``model`` nor the base optimizer gives them; or the climb that
                was asked for is impossible for a model that is spread over processes like this.
        """
        if model is None:  # a part that watches a model knows one
            model = next((part.model for _, part in self.parts.with_member("model")), None)
        check_model(model)
        self.model = model
        self._statistics, self._own_statistics = RunningStatistics(model), RunningStatistics(model)
        exchanges = self._climb.dtype is not None and any(p.dtype in HALF for p in self.parameters())
        self._ranks = Replicas(model, self.parameters(), self._global_ascent, exchanges=exchanges)
        self._climb.displacement.reshard = self._ranks.reshard
        if self.parts.needs_names:
            parameter_names(self.param_groups, model)
        if model is not None:
            for _, part in self.parts.with_member("attach"):
                part.attach(model)

    @property
    def phase(self) -> PassName | None:
        """The pass under way, for a closure that tells them apart; ``None`` outside the passes."""
        return self._stage.phase

    @property
    def climbs(self) -> bool:
        """Whether this step has a pass at w + ε; not where every radius is 0, or the last climb is re-used."""
        return self.parts.climbs_at(self._steps) and any(self._group_climbs(group) for group in self.param_groups)

    @property
    def needs_clean_pass(self) -> bool:
        """Whether ∇L(w) takes a pass of its own (:meth:`clean`), as for DISAM with GSAM's or SAGM's descent."""
        clean = self.parts.climbs_clean and self._share.fraction == 1
        return self.parts.keeps_gradient and not clean and not self.parts.shared and self.climbs

    # --- inside a step ---

    @property
    def _surveys(self) -> bool:
        return self._weighing.exact and not self.parts.plain and self.climbs

    @property
    def _climbs_alone(self) -> bool:
        """Whether the present pass belongs to a climb (and its gradient to this rank, where ranks climb alone)."""
        return self._stage.phase not in (None, "descent") and self._stage.climbs

    def _reset(self) -> None:
        """Forget a step that was begun."""
        self._stage = Stage()
        self._weighing.forget()
        self._memories.discard()
        self._combining.forget()
        self._measured.forget()

    @contextmanager
    def _pass(self, name: PassName) -> Iterator[None]:
        if self._stage.phase is not None:
            raise RuntimeError(f"a pass cannot begin inside another ({self._stage.phase!r} is under way)")
        if "base" not in vars(self):  # Lightning's wrapper: an instance of a subclass, whose attributes are its own
            raise RuntimeError(
                f"{type(self).__name__} imitates the optimizer, and what a pass leaves would be lost on it: use the "
                "optimizer itself (in Lightning self.optimizers(use_pl_optimizer=False)), or step(closure)"
            )
        self._ranks.check(self.parameters())
        self._climb.restore()  # does nothing, unless an interrupt hit the last restoration itself
        if name != "descent" and self._stage.has_gradient:
            self._refuse(
                "the climb's pass was made and its gradient is still there: all micro-batches belong inside one "
                "climbing() and one perturbed(), and zero_grad() before a new step"
            )
        if self._stage.starts_anew(name):
            self._reset()
        if name == "climb" and self.climbs:
            missing = missing_pass(self.parts, self._stage, surveys=self._surveys, clean=self.needs_clean_pass)
            self._refuse(missing)
        stage = self._stage
        stage.climbs = self.climbs
        # Running statistics see one pass at clean weights, and no other.
        counted = name == "clean" or (name == "climb" and "clean" not in stage.done)
        try:
            with ExitStack() as stack:
                alone = name != "descent" and self.climbs
                stack.enter_context(self._ranks.own() if alone else self._ranks.joint())
                if not counted:
                    dtype = self._climb.dtype if name == "descent" else None
                    stack.enter_context(self._statistics.preserved(dtype=dtype))
                if self.same_dropout:
                    stage.same_randomness({local(p).device for p in self.parameters()})
                stage.phase = name
                for slot, part in self.parts.with_member("watch") if self.climbs else []:
                    stack.enter_context(part.watch(self._view(slot, name)))
                yield
        except BaseException:
            self._reset()
            self._ranks.interrupted()
            raise
        finally:
            stage.phase = None
        stage.done.add(name)

    def _view(self, slot: str, name: PassName) -> View:
        parameters = self.parameters()
        previous = None
        if self._has_previous and getattr(getattr(self.parts, slot), "needs_previous", False):
            previous = self._climb.displacement.kept(parameters)
        alone = self._ranks.own_climb
        return View(
            name=name,
            parameters=parameters,
            remember=lambda what: self._memories.tensors(slot, what, parameters),
            previous=previous,
            replaced=self._climb.displacement.replaced,
            unrecorded=self._own_statistics.preserved,
            total=(lambda tensor: tensor) if alone else self._ranks.sum,
            gathered=(lambda rows: rows) if alone else self._ranks.gather,
            seed=self._seed,
        )

    def _seed(self) -> int:
        """For a generator of a part's own: another one at each call and in each step."""
        self._stage.seeds += 1
        return coming_seed() + SEEDS * self._steps + self._stage.seeds

    def _refuse(self, fault: str | None) -> None:
        if fault is not None:
            self._reset()
            raise RuntimeError(fault)

    def _check_first_pass(self) -> None:
        stage = self._stage
        if stage.phase is not None:
            return  # _pass refuses
        if any(p.grad is self._descent_gradient for p in self.parameters() if p.grad is not None):
            raise RuntimeError(
                "the first gradient was added to the descent gradient of a step that was not made: all micro-batches "
                "belong inside one climbing() and one perturbed(), and zero_grad() before a new step"
            )
        if not self.parts.climbs_at(self._steps):
            self._refuse("this step re-uses the last climb and has one pass: `if optimizer.climbs:` before perturbed()")
        if self.climbs and ("climb" not in stage.done or "descent" in stage.done):
            # A bare perturbed(). (A step that GradScaler skipped leaves its passes behind; they do not count.)
            alone = self._ranks.own_climb
            self._refuse(fault_in_bare(self.parts, self._share, same_dropout=self.same_dropout, alone=alone))
            self._reset()
        if all(p.grad is None for p in self.parameters()):
            raise RuntimeError("there is no gradient to climb: call backward() in the first pass, before perturbed()")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _displace(self) -> None:
        parts, stage = self.parts, self._stage
        stage.forget_gradient()
        check_groups(self.param_groups)
        if parts.keeps_gradient and "clean" not in stage.done:
            self._combining.keep_clean(self.parameters())
        deferred = stage.inverse_scale is not None
        ground = Ground(
            names=parameter_names(self.param_groups, self.model) if parts.needs_names else {},
            retreat=parts.retreat,
            gradient=self._combining.clean,
            measured=self._measured.tensors,
            inverse_scale=stage.inverse_scale,
            remember=lambda name, some: self._memories.tensors("geometry", name, some, deferred=deferred),
            diagnose=self.diagnose,
            keep_all=parts.needs_previous,
        )
        groups = [(group, self._length(group)) for group in self.param_groups]
        self._has_previous = False  # w takes the place of θ_{t−1}, and is the previous one only after a step from it
        self._climb.to(groups, parts.geometry, ground)
        stage.displaced = self._climb.displacement.active
        self._clear_gradients()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _combine(self) -> None:
        parameters = self.parameters()
        try:
            complete = self._combining.combine(parameters, self._stage, self._ranks, self._climb.overflow())
        except BaseException:
            self._reset()
            raise
        if complete:
            self._complete()
        else:
            self._clear_gradients()
            self._weighing.forget()
            self._stage.next_part()

    def _complete(self) -> None:
        """``.grad`` holds what the base optimizer is to get."""
        self._stage.complete = True
        self._descent_gradient = next((p.grad for p in self.parameters() if p.grad is not None), None)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _step_base(self, scaler: torch.amp.GradScaler | None = None) -> Any:
        if self.parts.needs_previous and not self._stage.displaced:
            self._climb.displacement.keep(self.parameters())
        self._memories.begin(self.parameters())
        made: list[bool] = []
        hook = self.base.register_step_post_hook(lambda *_: made.append(True))
        try:
            result = self.base.step() if scaler is None else scaler.step(self.base)
        finally:
            hook.remove()
        torch.clear_autocast_cache()
        self._ranks.reshard()
        if made and not skipped(scaler, self.base):
            self._made()
        self._stage.made()
        self._descent_gradient = None
        return result

    def _made(self) -> None:
        """The base optimizer has stepped (a ``GradScaler`` did not skip it)."""
        self._memories.commit(self.parameters())
        if self._stage.complete:
            self._steps += 1
        self._has_previous = self.parts.needs_previous
        for slot, part in self.parts.with_member("stepped"):
            part.stepped(self._view(slot, "descent"))

    def _clear_gradients(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def _group_climbs(self, group: Mapping[str, Any]) -> bool:
        if group.get("rho") is None and self.parts.measured:
            return True
        length = self._length(group)
        return isinstance(length, Tensor) or length != 0

    def _length(self, group: Mapping[str, Any]) -> float | Tensor:
        own = group.get("rho")
        if own is None:
            return self.parts.radius.length(group)
        return own if isinstance(own, Tensor) else check_radius(own)

    @property
    def _rests(self) -> bool:
        """Whether the base optimizer's step would move nothing, every learning rate being 0.

        torch's distributed checkpoints make such a step to initialise an optimizer's state, some whenever they are
        saved. It leaves no trace: θ_{t−1} and the mean of the weights are what they were.
        """
        rates = [group.get("lr") for group in self.param_groups]
        return all(rate is not None and getattr(rate, "is_cpu", True) and rate == 0 for rate in rates)

    def _warn_plain_step(self) -> None:
        if not self._warned_plain_step:
            self._warned_plain_step = True
            warnings.warn(
                "step() had neither a closure nor climbing()/perturbed() before it: this is a plain step of the base "
                "optimizer, not a sharpness-aware one",
                stacklevel=5,  # past torch's wrappers of step()
            )

    # --- what is saved ---

    def extra_state(self) -> dict[str, Any]:
        """What the engine and its parts remember, keyed by parameter name: complete also before the first step."""
        keys = parameter_keys(self.param_groups, self.model)
        state: dict[str, Any] = {**super().extra_state(), "steps": self._steps, "memory": self._memories.state(keys)}
        if self.parts.needs_previous:
            kept = {p: local(p) for p in keys}
            if self._has_previous:
                kept |= self._climb.displacement.kept(list(keys))
            weights = {keys[p]: as_sharded(t.detach().clone(), p) for p, t in kept.items()}
            state["previous"] = {"known": self._has_previous, "weights": weights}
        return state

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        super().load_extra_state(state)
        keys = parameter_keys(self.param_groups, self.model)
        memory, previous = state.get("memory", {}), state.get("previous", {"known": False})
        weights = previous["weights"] if self.parts.needs_previous and previous["known"] else None
        self._memories.check(memory, keys)  # first: what is refused changes nothing
        if weights is not None:
            check_by_key(weights, keys)
        self._reset()
        self._memories.load(memory, keys)
        self._steps = int(state.get("steps", 0))
        self._has_previous = weights is not None
        if weights is not None:
            copy_by_key(self._climb.displacement.scratch(list(keys)), weights, keys)
