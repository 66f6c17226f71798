"""One run of the experiment: one optimizer at one learning rate and one seed, and what its weights are worth.

The slow weights move α times as far as the fast ones, so the fair control for Lookahead at a factor F is SGD at about
α F: what only Lookahead at F has over SGD at F may be no more than a smaller learning rate.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from pictures import Batches, Pictures
from torch import Tensor, nn

import steppe
from steppe import analysis, averaging

OPTIMIZERS = ("sgd", "lookahead", "lookahead-mean", "lookahead-anchor", "lookahead-mean-anchor")
"""SGD's one trajectory gives three rows: its last weights, their uniform average, SWAD's average."""


@dataclass(frozen=True)
class Setting:
    """What all runs of an experiment have in common.

    Attributes:
        lr: the learning rate that the factors multiply.
        steps: steps of the optimizer; the factor comes in over the first tenth.
        per_domain: pictures of every source domain in a step.
        k: steps of a round.
        alpha: how far the slow weights follow.
        pull: by which share of the way to their mean a step pulls the anchored fast weights, before momentum (which
            adds up to ten such steps): 2 s · lr · factor, with s the anchor of a penalty that is summed over the
            weights. The same at every factor, so s is smaller where the learning rate is larger.
        evaluations: how often SWAD is told the validation loss; at every second, all weights are evaluated.
        snapshots: how many of the fast weights of the second half are compared.
        sigma: of the noise on the weights in the local entropy, in a root mean square of weights. Once in that of the
            very weights that are measured ("own"): under normalisation weights that are twice as large are the same
            network, and large learning rates make them grow. Once in that of the weights at the start ("same"), one
            noise for all.
        samples: how many noises.

    Raises:
        ValueError: the steps cannot be divided so.
    """

    lr: float = 0.01
    steps: int = 300
    per_domain: int = 8
    k: int = 5
    alpha: float = 0.1
    pull: float = 0.05
    evaluations: int = 20
    snapshots: int = 10
    sigma: float = 0.05
    samples: int = 6

    def __post_init__(self) -> None:
        if self.steps < 10:
            raise ValueError(f"steps must be at least 10, a tenth of which the factor takes to come in: {self.steps}")
        if self.snapshots < 2:
            raise ValueError(f"snapshots must be at least 2, which are compared: {self.snapshots}")
        for name, apart in (("evaluations", self.evaluation_every), ("snapshots", self.snapshot_every)):
            if apart < 1 or apart % self.k:
                raise ValueError(
                    f"{name} would be {apart} steps apart, which must be a multiple of k = {self.k}, so that each "
                    f"sees the end of a round: change steps or {name}"
                )

    @property
    def evaluation_every(self) -> int:
        """Steps from one evaluation to the next."""
        return self.steps // self.evaluations

    @property
    def snapshot_every(self) -> int:
        """Steps from one snapshot to the next, in the second half."""
        return self.steps // 2 // self.snapshots

    def anchor(self, factor: float) -> float:
        """The strength s that pulls as :attr:`pull` says."""
        return self.pull / (2 * self.lr * factor)


class Diverged(Exception):
    """The loss of a step is not finite, or the weights after the last."""


class Trace:
    """The validation loss and accuracy of several weights over the steps of a run, which is left as it is.

    Batch normalisation has its statistics from the same few batches for all of them.

    Attributes:
        rows: name → ``step``, ``loss``, ``accuracy``, a list each.
    """

    def __init__(self, model: nn.Module, validation: Batches, fresh: list[Tensor]) -> None:
        self._probe = copy.deepcopy(model)
        self._validation, self._fresh = validation, fresh
        self.rows: dict[str, dict[str, list[float]]] = {}

    def see(self, step: int, name: str, weights: dict[str, Tensor]) -> None:
        self._probe.load_state_dict(weights)
        averaging.reestimate_batch_norm(self._probe, self._fresh)
        found = analysis.evaluate(self._probe, self._validation)
        self.add(step, name, found.loss, found.accuracy)

    def add(self, step: int, name: str, loss: float, accuracy: float | None) -> None:
        row = self.rows.setdefault(name, {"step": [], "loss": [], "accuracy": []})
        for key, value in (("step", step), ("loss", loss), ("accuracy", accuracy)):
            row[key].append(math.nan if value is None else value)


def run(pictures: Pictures, optimizer: str, factor: float, seed: int, setting: Setting) -> dict[str, Any]:
    """Train, and measure the weights that each method takes from the trajectory.

    Returns:
        Plain numbers: ``methods`` (name → measures), ``diversity``, ``seconds``, or ``diverged`` (the step); ``trace``
        (name → steps, losses, accuracies) as far as it came.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = pictures.network()
    generator = torch.Generator().manual_seed(seed)  # the same pictures in every run of a seed
    apart = torch.Generator().manual_seed(2**31 + seed)
    fresh = [pictures.batch(setting.per_domain, apart)[0] for _ in range(20)]
    trace = Trace(model, pictures.validation, fresh[:5])
    at_start = _root_mean_square(model)
    snapshots: list[dict[str, Tensor]] = []
    pulls: list[float] = []
    averages: dict[str, averaging.Average] = {}
    if optimizer == "sgd":
        averages = {"average": averaging.SWA(model, start=setting.steps // 10), "swad": steppe.SWAD(model)}
    try:
        chosen = _train(model, pictures, optimizer, factor, setting, generator, averages, snapshots, pulls, trace)
    except Diverged as error:
        return {"diverged": int(str(error)), "trace": trace.rows, "seconds": time.perf_counter() - start}
    methods = {}
    for name, weights in chosen.items():
        model.load_state_dict(weights)
        averaging.reestimate_batch_norm(model, fresh)
        methods[name] = _measures(model, pictures, setting, at_start)
        trace.add(setting.steps, name, methods[name]["validation_loss"], methods[name]["validation_accuracy"])
    diversity = _diversity(model, snapshots, pictures, fresh)
    if pulls:
        diversity["pull"] = statistics.fmean(pulls)
    return {
        "methods": methods,
        "diversity": diversity,
        "trace": trace.rows,
        "seconds": time.perf_counter() - start,
    }


def _train(
    model: nn.Module,
    pictures: Pictures,
    optimizer: str,
    factor: float,
    setting: Setting,
    generator: torch.Generator,
    averages: dict[str, averaging.Average],
    snapshots: list[dict[str, Tensor]],
    pulls: list[float],
    trace: Trace,
) -> dict[str, dict[str, Tensor]]:
    """The weights that each method takes from this trajectory, by its name."""
    base = torch.optim.SGD(model.parameters(), lr=setting.lr * factor, momentum=0.9, weight_decay=5e-4)
    stepping: torch.optim.Optimizer = base
    lookahead: steppe.Lookahead | None = None
    if optimizer != "sgd":
        stepping = lookahead = steppe.Lookahead(
            base,
            k=setting.k,
            alpha=setting.alpha,
            fast="mean" if "mean" in optimizer else "last",
            anchor=setting.anchor(factor) if "anchor" in optimizer else 0.0,
            anchor_reduction="sum",
            model=model,
        )
    ramp = setting.steps // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        base, lambda step: (1 + (factor - 1) * min(1.0, (step + 1) / ramp)) / factor
    )
    every, keep = setting.evaluation_every, setting.snapshot_every
    model.train()
    for step in range(1, setting.steps + 1):
        second_half = step > setting.steps // 2
        x, y = pictures.batch(setting.per_domain, generator)
        stepping.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if not math.isfinite(loss.item()):
            raise Diverged(step)
        loss.backward()
        if "anchor" in optimizer and second_half:
            before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            stepping.step()
            pulls.append(_pulled(model, before))
        else:
            stepping.step()
        schedule.step()
        for average in averages.values():
            average.update()
        if averages and step % every == 0:
            found = analysis.evaluate(model, pictures.validation).loss
            if not math.isfinite(found):
                raise Diverged(step)
            averages["swad"].segment(found)
            if step % (2 * every) == 0 and step < setting.steps:
                trace.see(step, "last", model.state_dict())
                if step > ramp:
                    trace.see(step, "average", averages["average"].finish())
        # The fast weights at the end of a round, before they go back to the slow ones, are not seen from outside: one
        # step before it is what is kept.
        if lookahead is not None and step % (2 * every) == 2 * every - 1:
            trace.see(step, f"{optimizer} fast", model.state_dict())
            with lookahead.slow_weights():
                trace.see(step, optimizer, model.state_dict())
        if second_half and step % keep == keep - 1:
            snapshots.append({name: p.detach().clone() for name, p in model.named_parameters()})
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise Diverged(setting.steps)
    if lookahead is not None:
        with lookahead.slow_weights():
            return {optimizer: _copy(model)}
    return {"last": _copy(model), **{name: average.finish() for name, average in averages.items()}}


def _pulled(model: nn.Module, before: list[Tensor]) -> float:
    """‖2s (θ − m)‖ / ‖g‖: the anchor has added its gradient to the loss's, and left the sum."""
    after = [p.grad for p in model.parameters() if p.grad is not None]
    size = float(torch.nn.utils.get_total_norm(before))
    pull = float(torch.nn.utils.get_total_norm(torch._foreach_sub(after, before)))
    return pull / size if size else math.nan


def _measures(model: nn.Module, pictures: Pictures, setting: Setting, at_start: float) -> dict[str, float]:
    parts: dict[str, Batches] = {"validation": pictures.validation, "held_out": pictures.answer}
    measured = {"weights": _root_mean_square(model)}
    for name, batches in parts.items():
        found = analysis.evaluate(model, batches)
        measured[f"{name}_accuracy"], measured[f"{name}_loss"] = found.accuracy, found.loss
        for noise, scale in (("own", measured["weights"]), ("same", at_start)):
            entropy = analysis.local_entropy(model, batches, sigma=setting.sigma * scale, samples=setting.samples)
            measured[f"{name}_entropy_{noise}"] = entropy.value
    return measured


def _diversity(
    model: nn.Module, snapshots: list[dict[str, Tensor]], pictures: Pictures, fresh: list[Tensor]
) -> dict[str, float]:
    """Of the fast weights of the second half: distances, cosines, and CKA of first and last on the held-out domain."""
    pairs = analysis.pairwise(snapshots)
    norms = [math.sqrt(sum(float(w.double().square().sum()) for w in each.values())) for each in snapshots]
    one, other = _with(model, snapshots[0], pictures, fresh), _with(model, snapshots[-1], pictures, fresh)
    similarity = analysis.cka(one, other, pictures.answer)
    return {
        "distance": pairs.mean_distance,
        "relative_distance": pairs.mean_distance / statistics.fmean(norms),
        "cosine": pairs.mean_cosine,
        "cka": float(similarity.values[-1, -1]),
    }


def _with(model: nn.Module, weights: dict[str, Tensor], pictures: Pictures, fresh: list[Tensor]) -> nn.Module:
    other = pictures.network()
    other.load_state_dict({**model.state_dict(), **weights})
    averaging.reestimate_batch_norm(other, fresh)
    return other


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _root_mean_square(model: nn.Module) -> float:
    squares = sum(float(p.detach().double().square().sum()) for p in model.parameters())
    return math.sqrt(squares / sum(p.numel() for p in model.parameters()))


def plan(factors: tuple[float, ...], seeds: int) -> list[tuple[int, str, float]]:
    """Seeds outermost, so that a table can be made of what is there at any time."""
    return list(itertools.product(range(seeds), OPTIMIZERS, factors))
