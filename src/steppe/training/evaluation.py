"""Measuring a model on every domain and split of a leave-one-domain-out experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steppe.data.splits import Splits
from steppe.tasks.classification import Predictions, predict
from steppe.training.team import Team

Loader = Callable[[str, NDArray[np.int64]], Iterable[Sequence[Tensor]]]


@dataclass(frozen=True)
class Evaluation:
    """What a model says about every picture that any split contains, and the measures that follow.

    Attributes:
        indices: domain -> indices of its pictures, ascending.
        predictions: domain -> predictions for them, in that order.
        accuracy: domain -> split -> fraction of correct predictions, in [0, 1].
        loss: domain -> split -> mean cross-entropy in nats.
        validation_accuracy: mean over the source domains of the accuracy on their validation pictures.
        validation_loss: the same of the cross-entropy, in nats.
    """

    indices: Mapping[str, NDArray[np.int64]]
    predictions: Mapping[str, Predictions]
    accuracy: dict[str, dict[str, float]]
    loss: dict[str, dict[str, float]]
    validation_accuracy: float
    validation_loss: float

    def rows(self, domain: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of ``predictions[domain]`` that belong to these pictures."""
        return np.searchsorted(self.indices[domain], indices).astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        tables = {
            domain: {
                "indices": torch.from_numpy(self.indices[domain]),
                "label": torch.from_numpy(p.label),
                "predicted": torch.from_numpy(p.predicted),
                "confidence": torch.from_numpy(p.confidence),
                "loss": torch.from_numpy(p.loss),
            }
            for domain, p in self.predictions.items()
        }
        return {
            "tables": tables,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "validation_accuracy": self.validation_accuracy,
            "validation_loss": self.validation_loss,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Evaluation:
        """The evaluation that :meth:`state_dict` described."""
        tables = {
            domain: {name: tensor.numpy() for name, tensor in table.items()}
            for domain, table in state["tables"].items()
        }
        return cls(
            indices={domain: table.pop("indices") for domain, table in tables.items()},
            predictions={domain: Predictions(**table) for domain, table in tables.items()},
            accuracy=state["accuracy"],
            loss=state["loss"],
            validation_accuracy=state["validation_accuracy"],
            validation_loss=state["validation_loss"],
        )


def evaluate(
    model: nn.Module,
    splits: Splits,
    loader: Loader,
    *,
    device: torch.device,
    team: Team | None = None,
    batch: int = 1,
) -> Evaluation:
    """Measure ``model`` on all splits of all domains; a picture that is in several splits is looked at once.

    Args:
        model: maps pictures to logits.
        splits: which pictures there are.
        loader: domain and indices -> batches of pictures and labels, in that order.
        device: where the model is.
        team: processes that each look at a part of the pictures, and then all have the whole.
        batch: the loader's batch size, so that a part consists of whole batches.

    Raises:
        BaseException: what a process's part raised, in all of them.
    """
    indices = {
        domain: np.unique(np.concatenate([np.asarray(part) for part in parts.values()])).astype(np.int64)
        for domain, parts in splits.evaluation.items()
    }
    predictions = _predicted(model, indices, loader, device, team or Team(), batch)
    accuracy: dict[str, dict[str, float]] = {}
    loss: dict[str, dict[str, float]] = {}
    for domain, parts in splits.evaluation.items():
        rows = {name: np.searchsorted(indices[domain], part) for name, part in parts.items()}
        accuracy[domain] = {name: predictions[domain].accuracy(where) for name, where in rows.items()}
        loss[domain] = {name: predictions[domain].mean_loss(where) for name, where in rows.items()}
    measured = [
        (predictions[domain], np.searchsorted(indices[domain], part)) for domain, part in splits.validation.items()
    ]
    return Evaluation(
        indices,
        predictions,
        accuracy,
        loss,
        validation_accuracy=float(np.mean([found.accuracy(where) for found, where in measured])),
        validation_loss=float(np.mean([found.mean_loss(where) for found, where in measured])),
    )


def _predicted(
    model: nn.Module,
    indices: Mapping[str, NDArray[np.int64]],
    loader: Loader,
    device: torch.device,
    team: Team,
    batch: int,
) -> dict[str, Predictions]:
    if team.alone:
        return predict(model, {domain: loader(domain, rows) for domain, rows in indices.items()}, device=device)
    # Batch b is process b mod R's: the same batches as in one process, whose losses have the same last bits.
    owners = {domain: np.arange(len(rows)) // batch % team.size for domain, rows in indices.items()}

    def part() -> dict[str, Predictions]:
        own = {domain: rows[owners[domain] == team.rank] for domain, rows in indices.items()}
        loaders = {domain: loader(domain, rows) for domain, rows in own.items() if len(rows)}
        return predict(model, loaders, device=device) if loaders else {}

    found = team.together(part)
    return {domain: _merged(owners[domain], [each.get(domain) for each in found]) for domain in indices}


def _merged(owners: NDArray[np.int64], parts: Sequence[Predictions | None]) -> Predictions:
    """The rows of all parts, row i out of part ``owners[i]``."""
    columns: dict[str, Any] = {}
    for name in ("label", "predicted", "confidence", "loss"):
        own = {rank: getattr(part, name) for rank, part in enumerate(parts) if part is not None}
        column = np.empty(len(owners), dtype=next(iter(own.values())).dtype)
        for rank, values in own.items():
            column[owners == rank] = values
        columns[name] = column
    return Predictions(**columns)
