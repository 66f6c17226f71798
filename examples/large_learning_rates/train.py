"""One run of the experiment: one optimizer at one learning rate and one seed, and what its weights are worth."""

from __future__ import annotations

import itertools
import math
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
        anchor: strength of the pull, summed over the weights.
        evaluations: how often SWAD is told the validation loss.
        snapshots: how many of the fast weights of the second half are compared.
        sigma: of the noise on the weights in the local entropy, in the root mean square of these very weights: under
            normalisation weights that are twice as large are the same network, and large learning rates make them grow.
        samples: how many noises.
    """

    lr: float = 0.01
    steps: int = 300
    per_domain: int = 8
    k: int = 5
    alpha: float = 0.1
    anchor: float = 0.1
    evaluations: int = 20
    snapshots: int = 10
    sigma: float = 0.05
    samples: int = 10


class Diverged(Exception):
    """The loss of a step is not finite."""


def run(pictures: Pictures, optimizer: str, factor: float, seed: int, setting: Setting) -> dict[str, Any]:
    """Train, and measure the weights that each method takes from the trajectory.

    Returns:
        Plain numbers: ``methods`` (name → measures), ``diversity``, ``seconds``, or ``diverged`` (the step).
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = pictures.network()
    generator = torch.Generator().manual_seed(seed)  # the same pictures in every run of a seed
    snapshots: list[dict[str, Tensor]] = []
    averages: dict[str, averaging.Average] = {}
    if optimizer == "sgd":
        averages = {"average": averaging.SWA(model, start=setting.steps // 10), "swad": steppe.SWAD(model)}
    try:
        chosen = _train(model, pictures, optimizer, factor, setting, generator, averages, snapshots)
    except Diverged as error:
        return {"diverged": int(str(error)), "seconds": time.perf_counter() - start}
    fresh = [pictures.batch(setting.per_domain, generator)[0] for _ in range(20)]
    methods = {}
    for name, weights in chosen.items():
        model.load_state_dict(weights)
        averaging.reestimate_batch_norm(model, fresh)
        methods[name] = _measures(model, pictures, setting)
    return {
        "methods": methods,
        "diversity": _diversity(model, snapshots, pictures, fresh),
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
) -> dict[str, dict[str, Tensor]]:
    """The weights that each method takes from this trajectory, by its name."""
    base = torch.optim.SGD(model.parameters(), lr=setting.lr * factor, momentum=0.9, weight_decay=5e-4)
    stepping: torch.optim.Optimizer = base
    if optimizer != "sgd":
        stepping = steppe.Lookahead(
            base,
            k=setting.k,
            alpha=setting.alpha,
            fast="mean" if "mean" in optimizer else "last",
            anchor=setting.anchor if "anchor" in optimizer else 0.0,
            anchor_reduction="sum",
            model=model,
        )
    ramp = setting.steps // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        base, lambda step: (1 + (factor - 1) * min(1.0, (step + 1) / ramp)) / factor
    )
    every, keep = setting.steps // setting.evaluations, setting.steps // 2 // setting.snapshots
    model.train()
    for step in range(1, setting.steps + 1):
        x, y = pictures.batch(setting.per_domain, generator)
        stepping.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if not math.isfinite(loss.item()):
            raise Diverged(step)
        loss.backward()
        stepping.step()
        schedule.step()
        for average in averages.values():
            average.update()
        if averages and step % every == 0:
            found = analysis.evaluate(model, pictures.validation).loss
            model.train()
            if not math.isfinite(found):
                raise Diverged(step)
            averages["swad"].segment(found)
        # The fast weights at the end of a round, before they go back to the slow ones, are not seen from outside: one
        # step before it is what is kept.
        if step > setting.steps // 2 and step % keep == keep - 1:
            snapshots.append({name: p.detach().clone() for name, p in model.named_parameters()})
    if optimizer != "sgd":
        return {optimizer: _copy(model)}  # the steps are whole rounds, so the model holds the slow weights
    return {"last": _copy(model), **{name: average.finish() for name, average in averages.items()}}


def _measures(model: nn.Module, pictures: Pictures, setting: Setting) -> dict[str, float]:
    parts: dict[str, Batches] = {"validation": pictures.validation, "held_out": pictures.answer}
    sigma = setting.sigma * _root_mean_square(model)
    measured = {"weights": _root_mean_square(model)}
    for name, batches in parts.items():
        found = analysis.evaluate(model, batches)
        entropy = analysis.local_entropy(model, batches, sigma=sigma, samples=setting.samples)
        measured[f"{name}_accuracy"], measured[f"{name}_loss"] = found.accuracy, found.loss
        measured[f"{name}_local_entropy"] = entropy.value
        measured[f"{name}_local_entropy_error"] = entropy.standard_error
    return measured


def _diversity(
    model: nn.Module, snapshots: list[dict[str, Tensor]], pictures: Pictures, fresh: list[Tensor]
) -> dict[str, float]:
    """Of the fast weights of the second half: distances, cosines, and CKA on the held-out domain."""
    pairs = analysis.pairwise(snapshots)
    one, other = _with(model, snapshots[0], pictures, fresh), _with(model, snapshots[-1], pictures, fresh)
    similarity = analysis.cka(one, other, pictures.answer)
    return {
        "distance": pairs.mean_distance,
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
