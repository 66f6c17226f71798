"""Writing what a finished run found: weights, predictions, and ``result.json`` last."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from steppe.data.domains import DomainDataset
from steppe.data.splits import Splits
from steppe.training.config import canonical_json
from steppe.training.evaluation import Evaluation
from steppe.training.files import write_atomically, write_json
from steppe.training.results import VERSION


def write_weights(path: Path, weights: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """The selected weights as safetensors, with the config in its metadata."""
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    # One entry only: safetensors writes several in an order that changes from process to process.
    content = safetensors_bytes(contiguous, metadata={"config": canonical_json(config)})
    write_atomically(path, lambda file: file.write(content))


def write_predictions(path: Path, dataset: DomainDataset, splits: Splits, evaluation: Evaluation) -> None:
    """What the selected checkpoint says: about an unseen domain's answer, and a source domain's in-domain pictures."""
    content = {}
    for domain, parts in splits.evaluation.items():
        indices = parts[splits.answer if domain in splits.unseen else splits.in_domain]
        found = evaluation.predictions[domain]
        content[domain] = [
            {
                "key": dataset.key(domain, int(index)),
                "index": int(index),
                "label": int(found.label[row]),
                "predicted": int(found.predicted[row]),
                "confidence": round(float(found.confidence[row]), 6),
            }
            for index, row in zip(indices, evaluation.rows(domain, indices), strict=True)
        ]
    write_json(path, content)


def checkpoint(step: int, splits: Splits, evaluation: Evaluation) -> dict[str, Any]:
    """A row of the table of checkpoints: what model selection may ask for, as fractions in [0, 1] and a loss in nats.

    ``held_out_validation_accuracy`` is for the oracle alone. A run that holds out two domains has
    ``cross_validation_accuracy`` beside these: each of the two domains → its accuracy on the split that
    leave-one-domain-out cross-validation asks for.
    """
    held_out, accuracy = splits.held_out, evaluation.accuracy
    row: dict[str, Any] = {
        "step": step,
        "validation_accuracy": evaluation.validation_accuracy,
        "validation_loss": evaluation.validation_loss,
        "held_out_accuracy": accuracy[held_out][splits.answer],
        "held_out_accuracy_all": accuracy[held_out]["all"],
        "held_out_validation_accuracy": accuracy[held_out][splits.selects],
        "in_domain_accuracy": statistics.fmean(accuracy[domain][splits.in_domain] for domain in splits.train),
    }
    if splits.validation_domain is not None:
        row["cross_validation_accuracy"] = {
            domain: accuracy[domain][splits.cross_validates] for domain in splits.unseen
        }
    return row


def measures(splits: Splits, evaluation: Evaluation) -> dict[str, Any]:
    """The part of ``result.json`` that says how well the selected checkpoint does, and on how many pictures."""
    held_out, accuracy = splits.held_out, evaluation.accuracy
    return {
        "validation_accuracy": evaluation.validation_accuracy,
        "accuracy": accuracy,
        "loss": evaluation.loss,
        "held_out_accuracy": accuracy[held_out][splits.answer],
        "held_out_accuracy_all": accuracy[held_out]["all"],
        "in_domain_accuracy": statistics.fmean(accuracy[domain][splits.in_domain] for domain in splits.train),
        "answer": splits.answer,
        "in_domain": splits.in_domain,
        "counts": {
            domain: {name: len(part) for name, part in parts.items()} for domain, parts in splits.evaluation.items()
        },
    }


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``result.json``: from then on the run is finished."""
    write_json(path, {"version": VERSION, **content, "finished": datetime.now(UTC).isoformat(timespec="seconds")})
