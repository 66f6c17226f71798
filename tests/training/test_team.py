"""A run in two processes: the same numbers as in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import launch
from safetensors.torch import load_file
from small_runs import small_config

from steppe.training import Machine, Trainer

ALGORITHMS = (
    "erm",
    "disam+sagm",
    "coral+disam",
    "tram",
    "fishr",
    "mixup",
    "lookahead",
    "swad",
    "trpo+disam",
)


def config_of(algorithm: str, frozen: bool) -> Any:
    return small_config(
        "emoji", algorithm=algorithm, frozen_batch_norm=frozen, steps=6, eval_every=3, optimizer="sgd", lr=1e-3
    )


def train_all(rank: int, root: Path, cases: list[tuple[str, bool]]) -> None:
    for algorithm, frozen in cases:
        out = root / f"{algorithm} {frozen}"
        Trainer(config_of(algorithm, frozen), out=out, machine=Machine(device="cpu"), command="test").fit()


def found(run: Path) -> tuple[dict[str, Any], torch.Tensor]:
    content = json.loads((run / "result.json").read_text())
    weights = load_file(run / "model.safetensors")
    return content, torch.cat([w.double().flatten() for _, w in sorted(weights.items())])


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    cases = [(algorithm, frozen) for algorithm in ALGORITHMS for frozen in (False, True)]
    launch(train_all, 2, tmp_path / "meeting", tmp_path / "two", cases)
    train_all(0, tmp_path / "one", cases)
    for algorithm, frozen in cases:
        name = f"{algorithm} {frozen}"
        (one, weights), (two, others) = (found(tmp_path / where / name) for where in ("one", "two"))
        assert (one["processes"], two["processes"]) == (1, 2)
        difference = float((weights - others).norm() / weights.norm())
        print(name, difference, one["loss"]["line"], two["loss"]["line"])
        assert one["id"] == two["id"]
