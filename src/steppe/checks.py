"""What would quietly be another method is refused, with the way to do it right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from steppe.batches import Share
from steppe.parts import Parts
from steppe.stage import Stage

HORIZON = 1000
"""Steps that are looked ahead to see whether a descent climbs at each."""


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``ValueError`` where a group of the base optimizer is to ascend: the climb would flatter the objective."""
    if any(group.get("maximize") for group in groups):
        raise ValueError(
            "maximize=True is impossible: a climb goes to where the objective is worse, which for what is maximised is "
            "down; minimise its negative instead"
        )


def check_model(model: nn.Module | None) -> None:
    """Raise ``TypeError`` for what is no model, ``ValueError`` for one whose shards look like whole parameters.

    Its norms would be the rank's own.
    """
    if not isinstance(model, nn.Module | None):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    # By name, because the import takes time that nobody else needs.
    modules = () if model is None else model.modules()
    if any(kind.__name__ == "FullyShardedDataParallel" for module in modules for kind in type(module).__mro__):
        raise ValueError("FullyShardedDataParallel is not supported: shard by fully_shard (FSDP2)")


def missing_pass(parts: Parts, stage: Stage, *, surveys: bool, clean: bool) -> str | None:
    """Why the climb's pass cannot begin yet: the name of a pass that belongs before it, and how to make it.

    Args:
        parts: the four parts.
        stage: the passes made so far.
        surveys: whether a survey is needed.
        clean: whether ∇L(w) takes a pass of its own.
    """
    wanted = {
        "survey": (surveys, "accumulate='exact' needs the losses of all micro-batches first", "surveying"),
        "clean": (clean, f"{parts.descent} needs ∇L(w) beside the climb's gradient", "clean"),
        "measure": (parts.measures, f"{parts.geometry} measures itself by a gradient of its own", "measuring"),
    }
    for name, (needed, why, context) in wanted.items():
        if needed and name not in stage.done:
            return (
                f"{why}: make one more pass inside `with optimizer.{context}():` before climbing(), or let "
                "`for each in optimizer.passes()` make them all"
                + (", or give the descent shared=True" if name == "clean" else "")
            )
    return None


def fault_in_climb(parts: Parts, stage: Stage, share: Share) -> str | None:
    """Why the climb's pass that was made cannot serve."""
    if not parts.plain and not stage.samples("climb"):
        return (
            f"{parts.objective} was to be climbed, but optimizer.objective(losses, domain) was not called inside "
            "climbing(): the gradient is not the objective's"
        )
    if share.divides and not stage.share("climb"):
        return (
            "ascent_fraction and m divide the batch by optimizer.ascent_batch(x, y, domain=domain), which was not "
            "called inside climbing()"
        )
    return None


def fault_in_bare(parts: Parts, share: Share, *, same_dropout: bool, alone: bool) -> str | None:
    """Why ``perturbed()`` alone, with the first gradient as the caller left it, cannot make this method.

    Args:
        parts: the four parts.
        share: of the batch, for the climb.
        same_dropout: whether all passes are to draw the same random numbers.
        alone: whether each rank is to climb on its own samples.
    """
    leaves_out = hasattr(parts.descent, "climbs_at") and not all(map(parts.climbs_at, range(HORIZON)))
    reasons = {
        f"takes the gradient as it is, which is not that of {parts.objective}": not parts.plain,
        f"cannot measure the radius of {parts.radius}": parts.measured,
        f"leaves out the pass of {parts.geometry}": parts.measures or not parts.climbs_clean,
        "cannot divide the batch": share.divides,
        f"cannot leave out climbs as {parts.descent} asks": leaves_out,
        "cannot give the first pass the random numbers of the second, for same_dropout=True": same_dropout,
    }
    for reason, holds in reasons.items():
        if holds:
            return f"perturbed() without climbing() {reason}: make the first pass inside climbing()"
    if alone:
        return (
            "perturbed() without climbing() finds a gradient that DDP has averaged, and each rank was to climb on its "
            "own samples: make the first pass inside climbing(), or pass global_ascent=True"
        )
    return None
