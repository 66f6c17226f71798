"""A store of runs in the benchmark's format with made-up numbers, for the tests of tables, statistics and the page."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steppe.training.config import RunConfig

STYLES = ("fluent", "noto", "twemoji", "line")
SETTINGS = RunConfig(held_out="line", image_size=64, batch_per_domain=8, steps=200, eval_every=50, optimizer="adamw")
CONFIG = SETTINGS.canonical(dataset="emoji", fingerprint="0123456789ab", split="strict")
HYPER: dict[str, dict[str, float]] = {
    "erm": {},
    "sam": {"rho": 0.05},
    "asam": {"rho": 0.5, "eta": 0.01},
    "disam": {"rho": 0.05, "lam": 0.1},
}
SECONDS = {"erm": 0.31, "sam": 0.617, "asam": 0.64, "disam": 0.62}


def write_run(
    root: Path,
    algorithm: str = "erm",
    held_out: str = "line",
    seed: int = 0,
    *,
    accuracy: float = 0.5,
    everything: float | None = None,
    in_domain: float = 0.8,
    seconds_per_step: float | None = None,
    domains: Sequence[str] = STYLES,
    pictures: int = 100,
    predictions: Mapping[str, list[dict[str, Any]]] | None = None,
    result: Mapping[str, Any] | None = None,
    command: str = "steppe demo --seeds 3",
    finished: bool = True,
    dataset_spec: str | None = None,
    **config: Any,
) -> Path:
    """Writes one run as the benchmark would and returns its folder; keywords that are not named go into the config."""
    settings = CONFIG | {"algorithm": algorithm, "held_out": held_out, "seed": seed}
    settings = settings | {"hyper": HYPER.get(algorithm, {"rho": 0.05})} | config
    identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / str(settings["dataset"]) / algorithm / held_out / identity
    folder.mkdir(parents=True)
    _write(folder / "config.json", settings)
    sources = [domain for domain in domains if domain != held_out]
    lines = metrics(sources, seed, SECONDS.get(algorithm, 0.6), int(settings["steps"]), flat=algorithm != "erm")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not finished:
        return folder
    everything = accuracy if everything is None else everything
    splits: dict[str, dict[str, float]] = {
        domain: {"train": 0.99, "validation": 0.8, "test": in_domain} for domain in sources
    }
    splits[held_out] = {"train": accuracy, "validation": accuracy, "test": accuracy, "all": everything}
    outcome = {
        "version": 1,
        "id": identity,
        "dataset": settings["dataset"],
        "dataset_spec": dataset_spec or settings["dataset"],
        "algorithm": algorithm,
        "held_out": held_out,
        "seed": seed,
        "selected_step": 150,
        "validation_accuracy": 0.8,
        "accuracy": {domain: splits[domain] for domain in domains},
        "loss": {domain: dict.fromkeys(splits[domain], 1.0) for domain in domains},
        "held_out_accuracy": accuracy,
        "in_domain_accuracy": in_domain,
        "answer": "test",
        "in_domain": "test",
        "held_out_accuracy_all": everything,
        "counts": {domain: dict.fromkeys(splits[domain], pictures) for domain in domains},
        "seconds_per_step": SECONDS.get(algorithm, 0.6) if seconds_per_step is None else seconds_per_step,
        "seconds": 61.5,
        "steps": settings["steps"],
        "parameters": 3_384_000,
        "command": command,
        "versions": {"steppe": "0.1.0", "torch": "2.11.0", "timm": "1.0.20", "python": "3.11.7"},
        "device": "cpu",
        "threads": 2,
        "finished": f"2026-11-20T10:{seed:02d}:00+00:00",
    }
    _write(folder / "predictions.json", predictions if predictions is not None else {})
    _write(folder / "result.json", outcome | dict(result or {}))
    return folder


def metrics(sources: Sequence[str], seed: int, seconds: float, steps: int, *, flat: bool) -> list[dict[str, Any]]:
    """Training lines whose losses fall towards another floor in every domain, and one evaluation."""
    lines: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        rate = 1 / 45 if flat else 1 / 60
        losses = {
            domain: (0.35 + 0.15 * number)
            + (1.9 - 0.1 * number) * math.exp(-step * rate * (1 - 0.18 * number * (not flat)))
            + 0.03 * math.sin(step * (number + 2) + seed)
            for number, domain in enumerate(sources)
        }
        mean = sum(losses.values()) / len(losses)
        lines.append(
            {"kind": "train", "step": step, "loss": mean, "domain_loss": losses, "lr": 5e-5, "seconds": seconds}
        )
    accuracy = {domain: {"train": 0.9, "validation": 0.8, "test": 0.8} for domain in sources}
    lines.append({"kind": "eval", "step": steps, "accuracy": accuracy, "loss": accuracy, "seconds": 1.0})
    return lines


def write_benchmark(
    root: Path,
    algorithms: Sequence[str] = ("erm", "sam", "disam"),
    held_out: Sequence[str] = ("fluent", "line"),
    seeds: int = 3,
    pictures_of_emoji: bool = False,
    **options: Any,
) -> Path:
    """A whole small benchmark: every algorithm on every held-out domain with every seed."""
    if pictures_of_emoji:
        options = {"dataset_fingerprint": emoji_fingerprint(), "pictures": 96} | options
    base = {"fluent": 0.71, "noto": 0.76, "twemoji": 0.73, "line": 0.28}
    gain = {"erm": 0.0, "sam": 0.021, "asam": 0.017, "disam": 0.034}
    for algorithm in algorithms:
        for domain in held_out:
            for seed in range(seeds):
                wobble = 0.02 * _noise(algorithm, domain, seed)
                in_domain = round(0.81 + gain.get(algorithm, 0.01) / 2 + wobble / 3, 3)
                accuracy = round(base.get(domain, 0.6) + gain.get(algorithm, 0.01) + wobble, 3)
                write_run(
                    root,
                    algorithm,
                    domain,
                    seed,
                    accuracy=accuracy,
                    everything=round(accuracy + 0.011, 3),
                    in_domain=in_domain,
                    predictions=emoji_predictions(domain, accuracy, in_domain) if pictures_of_emoji else None,
                    **options,
                )
    return root


def _noise(*what: object) -> float:
    """A number in [-1, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**31 - 1


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def emoji_predictions(held_out: str, accuracy: float, in_domain: float, seed: int = 0) -> dict[str, Any]:
    """Predictions for real pictures of the embedded set, right with the given frequencies."""
    from steppe.data.catalog import open_dataset
    from steppe.data.splits import make_splits

    dataset = open_dataset("emoji")
    splits = make_splits(dataset, held_out, trial_seed=seed)
    predictions: dict[str, Any] = {}
    for domain in dataset.domains:
        wanted = accuracy if domain == held_out else in_domain
        labels = dataset.labels(domain)
        predictions[domain] = []
        for index in map(int, splits.evaluation[domain]["test"]):
            label = int(labels[index])
            chance = (_noise(domain, held_out, index, seed) + 1) / 2
            predicted = label if chance < wanted else (label + 1 + int(7 * chance)) % len(dataset.classes)
            predictions[domain].append(
                {
                    "key": dataset.key(domain, index),
                    "index": index,
                    "label": label,
                    "predicted": predicted,
                    "confidence": round(0.3 + 0.7 * abs(_noise(index, domain)), 3),
                }
            )
    return predictions


def emoji_fingerprint() -> str:
    from steppe.data.catalog import open_dataset

    return open_dataset("emoji").fingerprint()
