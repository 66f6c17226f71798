"""Runs that take a second: drawings cut from EmojiStyles into a folder, timm's tiniest ResNet, a dozen steps."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from steppe.data import open_dataset
from steppe.training import RunConfig

DOMAINS = ("fluent", "noto", "line")
CLASSES = ("face", "fruit_veg", "vehicle")
PER_CLASS = 10

# Children start from a server that has imported everything once, and has never started a thread.
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["steppe.training.trainer", "steppe.data", "killed_runs"])


def export_drawings(root: Path) -> Path:
    """A folder <domain>/<class>/<code point>.png with real drawings: three domains, three classes, ten of each."""
    emoji = open_dataset("emoji")
    for domain in DOMAINS:
        labels = emoji.labels(domain)
        for name in CLASSES:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for index in [i for i, label in enumerate(labels) if label == emoji.classes.index(name)][:PER_CLASS]:
                emoji.image(domain, index).save(folder / f"{emoji.key(domain, index)}.png")
    return root


def small_config(dataset: Path | str, **changes: Any) -> RunConfig:
    """Twelve steps on 32 × 32 pixels, evaluated every four."""
    settings: dict[str, Any] = {
        "dataset": str(dataset),
        "held_out": "line",
        "algorithm": "erm",
        "backbone": "test_resnet",
        "pretrained": False,
        "frozen_batch_norm": False,
        "image_size": 32,
        "batch_per_domain": 3,
        "steps": 12,
        "eval_every": 4,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 1e-2,
    }
    return RunConfig(**{**settings, **changes})


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, times aside."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def result(run: Path) -> dict[str, Any]:
    """``result.json``, times and the command aside."""
    content = json.loads((run / "result.json").read_text())
    return {k: v for k, v in content.items() if k not in ("seconds", "seconds_per_step", "finished", "command")}


def outputs(run: Path) -> dict[str, Any]:
    """Everything a finished run leaves behind, times aside."""
    return {
        "metrics": metrics(run),
        "result": result(run),
        "predictions": json.loads((run / "predictions.json").read_text()),
        "weights": (run / "model.safetensors").read_bytes(),
        "files": sorted(path.name for path in run.iterdir()),
    }


def process(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """A real process, started, which can be killed."""
    child = forkserver.Process(target=target, args=arguments)
    child.start()
    return child
