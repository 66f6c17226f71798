"""SWAD: the mean of all weights in a valley of the validation loss."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steppe.averaging.average import VERSION, Weights, check_saved, empty_like, take_in
from steppe.errors import SteppeError


class Segment(NamedTuple):
    """The steps from one evaluation to the next."""

    mean: list[Tensor]
    loss: float
    start: int
    end: int


class SWAD:
    r"""Stochastic weight averaging, densely: the mean of every step's weights between a start and an end that the
    validation loss decides on (Cha et al., NeurIPS 2021), by the rule of the authors' release::

        swad = steppe.SWAD(model)
        swad.update()                              # after each step of the optimizer
        swad.segment(validation_loss)              # at each evaluation
        model.load_state_dict(swad.finish())       # at the end; then re-estimate BatchNorm

    An evaluation ends a *segment* s: m_s is the mean of the weights after each of its steps, l_s the validation loss,
    e_s the last step. C are the latest n_converge segments, S the latest n_tolerance, numbered from 0.

    - **Until convergence.** When C is full and C[0] has its smallest loss, convergence is at C[0]'s e, and

          threshold = (1 + tolerance_ratio) · mean loss of C.

      The average begins with those of S's first n_tolerance − n_converge + 1 segments (as many as there are) that
      come after S[j], j being 1 + the last of them whose loss exceeds the threshold, or 0 if none does. (S[j] itself
      is left out, as in the release.) With n_tolerance < n_converge it begins with C[1] … C[n_converge − n_tolerance].
    - **After it,** at each evaluation, its own segment being the last of S: nothing while S[0] ended before
      convergence; if every loss in S exceeds the threshold, the valley is *dead*, and nothing is ever added again;
      otherwise S[0] is added.
    - **At the end,** unless the valley is dead: from S[1] on, segments are added while the smallest loss of those
      that are left does not exceed the threshold.

    The average is the mean of the m_s that were added. All weigh the same, however many steps they have, and one may be
    added more than once, if convergence is early. If none was added, it is C[0]'s. Steps after the last evaluation do
    not count.

    Means are running means in the parameters' dtype (float32 for half precision); see
    :func:`~steppe.averaging.average.take_in` for what they round. They take max(n_converge, n_tolerance) + 2 copies
    of the weights: the segments, the segment under way, and the average. :meth:`update` makes one pass over the
    weights, and the host does not wait for it.

    All parameters of floating point are averaged, frozen ones too (their mean is what they are); tied ones once. On
    several ranks every one has its average, of its shards under FSDP2, and must be given the same losses.

    Args:
        model: the model that is trained, wrapped or not.
        n_converge: ≥ 1.
        n_tolerance: ≥ 1.
        tolerance_ratio: ≥ 0; 0.3 in the paper, 0.2 for VLCS.
        device: where segments and average are kept, ``"cpu"`` to spare an accelerator; by default beside the weights,
            where the mean of the segment under way is in any case.

    Attributes:
        converged: the step at which the loss converged, counted from 1; ``None`` before.
        threshold: the loss above which the valley ends; ``None`` before convergence.
        dead: whether the valley has ended.
        start: after :meth:`finish`, the first step whose weights are in the average, counted from 1; 0 for none.
        end: the last one. (Segments in between may be left out.)

    Raises:
        ValueError: a number is out of range, or the model has no parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        n_converge: int = 3,
        n_tolerance: int = 6,
        tolerance_ratio: float = 0.3,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        for name, number in (("n_converge", n_converge), ("n_tolerance", n_tolerance)):
            if not number >= 1 or number % 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {number}")
        if not (tolerance_ratio >= 0 and math.isfinite(tolerance_ratio)):
            raise ValueError(f"tolerance_ratio must be finite and at least 0, got {tolerance_ratio}")
        self.n_converge, self.n_tolerance, self.tolerance_ratio = int(n_converge), int(n_tolerance), tolerance_ratio
        self._settings = {name: getattr(self, name) for name in ("n_converge", "n_tolerance", "tolerance_ratio")}
        self.converged: int | None = None
        self.threshold: float | None = None
        self.dead = False
        self.start = self.end = 0
        self._weights = Weights(model)
        self._device = None if device is None else torch.device(device)
        self._steps = 0
        self._under_way = 0  # steps since the last evaluation
        self._running: list[Tensor] = []  # their mean
        self._segments: list[Segment] = []  # the latest, no more than the rule can still ask for
        self._average: list[Tensor] = []
        self._added = 0
        self._span = (0, 0)  # first and last step in the average

    def update(self) -> None:
        """The optimizer has made a step: take in the weights as they are now."""
        self._steps += 1
        self._under_way += 1
        if self.dead:
            return
        weights = self._weights.read()
        if not self._running:
            self._running = [empty_like(w) for w in weights]
        take_in(self._running, weights, self._under_way)

    def segment(self, val_loss: float) -> None:
        """The model was evaluated: the segment ends, and the rule decides what to add.

        Args:
            val_loss: its validation loss, the same number on every rank.

        Raises:
            SteppeError: the loss is not finite.
            RuntimeError: no step was made since the last evaluation.
        """
        loss = float(val_loss)
        if not math.isfinite(loss):
            raise SteppeError(
                f"the validation loss after step {self._steps} is {loss}, and SWAD cannot find a valley with it: "
                "training has diverged (lower the learning rate), or the evaluation is at fault"
            )
        if not self._under_way:
            raise RuntimeError("no step was made since the last evaluation: call update() after each optimizer.step()")
        first, self._under_way = self._steps - self._under_way + 1, 0
        if self.dead:
            return
        self._segments.append(Segment(self._kept(), loss, first, self._steps))
        if self.converged is None:
            self._look_for_convergence()
        else:
            self._follow(self.converged)

    def finish(self) -> dict[str, Tensor]:
        """The averaged state dict, for ``model.load_state_dict``: parameters averaged, buffers as they are now.

        It changes nothing: more steps may follow, and another call. Before convergence the weights are, with a warning,
        the last segment's mean; the mean of all steps, where no evaluation was made; or the present ones, where no step
        was made.
        """
        kept, added, span, rest = self._average, self._added, self._span, self._rest()
        if self.converged is None:
            kept, span = self._instead()
        for segment in rest:
            added += 1
            span = self._joined(span, segment, added)
        self.start, self.end = span
        averages = {}
        for i, p in enumerate(self._weights.names()):
            mean = [kept[i].clone()]  # one parameter at a time, so that nothing but the result is allocated
            for number, segment in enumerate(rest, start=added - len(rest) + 1):
                take_in(mean, [segment.mean[i]], number)
            averages[p] = mean[0]
        return self._weights.in_model(averages)

    # --- the rule ---

    def _look_for_convergence(self) -> None:
        window = self._segments[-self.n_converge :]
        losses = [segment.loss for segment in window]
        if len(window) < self.n_converge or min(losses) < losses[0]:
            return
        self.converged = window[0].end
        self.threshold = (1 + self.tolerance_ratio) * statistics.mean(losses)  # exact but for one rounding
        self._average = [t.clone() for t in window[0].mean]  # what there is if nothing is ever added
        self._span = (window[0].start, window[0].end)
        if self.n_tolerance < self.n_converge:
            chosen = window[1 : self.n_converge - self.n_tolerance + 1]
        else:
            back = self._segments[-self.n_tolerance :][: self.n_tolerance - self.n_converge + 1]
            above = [i for i, segment in enumerate(back) if segment.loss > self.threshold]
            chosen = back[(above[-1] + 1 if above else 0) + 1 :]
        for segment in chosen:
            self._add(segment)
        del self._segments[: -self.n_tolerance]

    def _follow(self, converged: int) -> None:
        if self._segments[0].end < converged:
            return
        if self._exceeds(self._segments):
            self.dead = True
            self._segments, self._running = [], []
        else:
            self._add(self._segments[0])

    def _rest(self) -> list[Segment]:
        """What is to be added if this is the end."""
        left = [] if self.converged is None else self._segments[1:]
        end = 0
        while end < len(left) and not self._exceeds(left[end:]):
            end += 1
        return left[:end]

    def _exceeds(self, segments: list[Segment]) -> bool:
        assert self.threshold is not None
        return min(segment.loss for segment in segments) > self.threshold

    # --- the means ---

    def _kept(self) -> list[Tensor]:
        """The mean of the segment under way, in the memory of one that is no longer needed, if there is one."""
        room = self.n_tolerance if self.converged is not None else max(self.n_converge, self.n_tolerance)
        if len(self._segments) < room:
            mean = [empty_like(t, self._device) for t in self._running]
        else:
            mean = self._segments.pop(0).mean
        torch._foreach_copy_(mean, self._running)
        return mean

    def _add(self, segment: Segment) -> None:
        self._added += 1
        self._span = self._joined(self._span, segment, self._added)
        take_in(self._average, segment.mean, self._added)

    @staticmethod
    def _joined(span: tuple[int, int], segment: Segment, number: int) -> tuple[int, int]:
        if number == 1:
            return segment.start, segment.end
        return min(span[0], segment.start), max(span[1], segment.end)

    def _instead(self) -> tuple[list[Tensor], tuple[int, int]]:
        """What is returned for want of an average."""
        if self._segments:
            last = self._segments[-1]
            which, found = f"the mean of the last segment (steps {last.start} to {last.end})", last.mean
            span = (last.start, last.end)
            why = "the validation loss has not converged"
        elif self._steps:
            which, found, span = f"the mean of all {self._steps} steps", self._running, (1, self._steps)
            why = "segment() was never called"
        else:
            which, found, span, why = "the present weights", self._weights.read(), (0, 0), "update() was never called"
        warnings.warn(f"SWAD found no valley: {why}; what is returned is {which}", stacklevel=3)
        return found, span

    # --- saving ---

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, to be saved before the next step: the tensors are no copies."""
        sets = {"running": self._running if self._under_way else [], "average": self._average}
        for i in range(max(self.n_converge, self.n_tolerance)):
            sets[f"segment {i}"] = self._segments[i].mean if i < len(self._segments) else []
        return {
            "version": VERSION,
            "average": type(self).__name__,
            "settings": dict(self._settings),
            "steps": self._steps,
            "under_way": self._under_way,
            "segments": [[segment.loss, segment.start, segment.end] for segment in self._segments],
            "converged": self.converged,
            "threshold": self.threshold,
            "dead": self.dead,
            "added": self._added,
            "span": list(self._span),
            "weights": self._weights.save(sets),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, bit for bit, from what :meth:`state_dict` gave.

        Raises:
            ValueError: it is the state of another kind of average, of other settings or of another model, or a newer
                version's. Nothing is changed then.
        """
        check_saved(state, self, self._settings)
        saved, converged, dead = state["weights"], state["converged"], state["dead"]
        running = ["running"] if state["under_way"] and not dead else []
        average = ["average"] if converged is not None else []
        segments = [f"segment {i}" for i in range(len(state["segments"]))]
        self._weights.check(saved, running + average + segments)
        self._steps, self._under_way = state["steps"], state["under_way"]
        self.converged, self.threshold, self.dead = converged, state["threshold"], dead
        self._added, self._span, self.start, self.end = state["added"], (state["span"][0], state["span"][1]), 0, 0
        self._running, self._average, self._segments = [], [], []  # freed before anything is allocated
        self._running = self._weights.load(saved["running"], None) if running else []
        self._average = self._weights.load(saved["average"], self._device) if average else []
        self._segments = [
            Segment(self._weights.load(saved[key], self._device), *numbers)
            for key, numbers in zip(segments, state["segments"], strict=True)
        ]

    def __repr__(self) -> str:
        return f"SWAD({', '.join(f'{name}={value}' for name, value in self._settings.items())})"
