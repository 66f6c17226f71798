"""Mean loss and accuracy of a model on a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from steppe.analysis.bars import bar, length
from steppe.analysis.exact import exact
from steppe.analysis.keeping import devices, kept
from steppe.randomness import undisturbed
from steppe.vectors import widen

Loss = Callable[[Any, Any], Tensor]
"""From what the model returns and the targets to one loss a sample, ``[N]`` (or ``[N, ...]``, whose mean over the other
dimensions is the sample's), or to the batch's mean, 0-dim."""

Loader = Iterable[Sequence[Any]]
"""Batches ``(x, y, ...)``; what follows y is not looked at."""


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        loss: mean over the samples (nats, for the cross-entropy); not finite where a sample's is not.
        accuracy: fraction of correct predictions, in [0, 1]; ``None`` where the targets are not classes.
        samples: N.
        non_finite: how many samples have a loss that is not finite.
    """

    loss: float
    accuracy: float | None
    samples: int
    non_finite: int = 0

    def __repr__(self) -> str:
        accuracy = "" if self.accuracy is None else f", accuracy {100 * self.accuracy:.1f} %"
        broken = f", {self.non_finite} losses not finite" if self.non_finite else ""
        return f"Evaluation(loss {self.loss:.6g}{accuracy}, {self.samples} samples{broken})"


def evaluate(model: nn.Module, loader: Loader, *, loss: Loss | None = None, progress: bool = False) -> Evaluation:
    """Mean loss L = (1/N) Σ ℓ(f(x_i), y_i) and accuracy, in evaluation mode, summed in float64.

    Every sample counts the same, whatever batch it is in. Batches are moved to the model's device; one synchronisation
    for the whole of it.

    Args:
        model: called with ``x``.
        loader: batches ``(x, y, ...)``, each of ``x`` and ``y`` a tensor or tensors in nested containers.
        loss: ℓ; the cross-entropy of logits ``[N, C, ...]`` by default, in float32 or better. A batch whose loss is one
            number, its mean, counts as many samples as ``y`` has.
        progress: show a bar.

    Returns:
        Where the model returns a tensor ``[N, C, ...]`` and ``y`` holds integers ``[N, ...]``, the accuracy is that of
        the largest of the C; a row with a NaN is no correct prediction.

    Raises:
        ValueError: the loader is empty, or its batches are not ``(x, y, ...)``, or the losses have another shape.
        TypeError: the model returns no tensor, and there is no ``loss`` that could take it.
    """
    with kept(model), bar("evaluating", length(loader), progress) as advance:
        return measure(model, loader, loss, advance)


def measure(
    model: nn.Module, loader: Loader, loss: Loss | None, advance: Callable[[], None] = lambda: None
) -> Evaluation:
    """:func:`evaluate` for a model that is :func:`~steppe.analysis.keeping.kept` by the caller.

    Every call sees torch's global generators as the first did: a shuffled loader gives the same batches again.
    """
    totals: list[Tensor] = []
    samples = 0
    judged = True
    with undisturbed(devices(model)):
        for x, y in batches(model, loader):
            outputs = model(x)
            losses, n = sample_losses(loss, outputs, y)
            correct = correct_fractions(outputs, y)
            judged = judged and correct is not None
            right = losses.new_zeros(()) if correct is None else correct.to(losses.device).sum()
            share = n / len(losses)  # a batch's mean stands for all of its samples
            broken = (~losses.isfinite()).sum(dtype=losses.dtype)
            totals.append(torch.stack([losses.sum() * share, right, broken * share]))
            if len(totals) > 64:  # so that a loader of millions of batches does not fill the memory with their sums
                totals = [torch.stack(totals).sum(0)]
            samples += n
            advance()
    if not samples:
        raise ValueError(
            "the loader gave no samples: it is empty, or an iterator that has been gone through already; pass a "
            "DataLoader or a list of batches"
        )
    device = totals[0].device
    total, correct_total, broken_total = torch.stack([t.to(device) for t in totals]).sum(0).tolist()
    accuracy = correct_total / samples if judged else None
    return Evaluation(total / samples, accuracy, samples, round(broken_total))


def batches(model: nn.Module, loader: Loader) -> Iterator[tuple[Any, Any]]:
    """``x`` and ``y`` of every batch that is not empty, on the model's device.

    Raises:
        ValueError: a batch is not ``(x, y, ...)``.
    """
    held = next(chain(model.parameters(), model.buffers()), None)
    for batch in loader:
        if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) < 2:
            kind = f"of {len(batch)}" if isinstance(batch, Sequence) else f"({type(batch).__name__})"
            raise ValueError(f"a loader must give batches (x, y, ...), not something {kind}")
        x, y = (batch[0], batch[1]) if held is None else moved((batch[0], batch[1]), held.device)
        if size(y):
            yield x, y


def repeatable(loader: Loader) -> None:
    """Raise ``ValueError`` for what can be gone through once only, where it will be gone through at every point."""
    if isinstance(loader, Iterator):
        raise ValueError(
            "the loader is an iterator, which can be gone through once: pass a DataLoader or a list of batches"
        )


def moved(tree: Any, device: torch.device) -> Any:
    """Nested containers with every tensor on ``device``."""
    return tree_map(lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf, tree)


def size(tree: Any) -> int:
    """The number of samples: the length of the first tensor.

    Raises:
        ValueError: there is none, or it has no dimension.
    """
    first = next((leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)), None)
    if first is None or first.dim() == 0:
        raise ValueError("a loader must give batches (x, y, ...) with samples first: the targets y hold none")
    return len(first)


def sample_losses(loss: Loss | None, outputs: Any, y: Any) -> tuple[Tensor, int]:
    """The losses in float64, ``[N]`` or ``[1]`` for a batch's mean, and N."""
    if loss is None:
        if not isinstance(outputs, Tensor) or not isinstance(y, Tensor):
            got = type(outputs if isinstance(y, Tensor) else y).__name__
            raise TypeError(
                f"the cross-entropy takes tensors, got {got}: pass loss=, a function of outputs and targets"
            )
        losses = functional.cross_entropy(widen(outputs), y.to(outputs.device), reduction="none")
    else:
        losses = loss(outputs, y)
    losses, n = exact(losses), size(y)
    if losses.dim() == 0:
        return losses[None], n
    if len(losses) != n:
        raise ValueError(f"the loss gave {len(losses)} values for {n} samples: return one a sample, or their mean")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses, n


def correct_fractions(outputs: Any, y: Any) -> Tensor | None:
    """The fraction of correct predictions in each sample, ``[N]``, or ``None`` where ``y`` does not hold classes."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor) or outputs.dim() < 2:
        return None
    classes = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not classes or y.shape != outputs.shape[:1] + outputs.shape[2:]:
        return None
    # argmax takes a NaN for the largest.
    right = (outputs.argmax(1) == y.to(outputs.device)) & ~outputs.isnan().any(1)
    return exact(right).flatten(1).mean(1) if right.dim() > 1 else exact(right)
