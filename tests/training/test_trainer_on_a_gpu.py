"""What only an accelerator can show; skipped where there is none (CI has none)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import metrics, outputs, small_config
from test_checkpoints import stop

from steppe.data import Batch
from steppe.training import Machine, Trainer
from steppe.training.machine import accelerator
from steppe.training.session import Session

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ALGORITHMS = (
    "erm",
    "disam+sagm",
    "coral+asam+gsam",
    "fishr+groupdro+disam+tram",
    "irm+vrex+mmd+tram-fisher",
    "mixup+tram-ema+looksam",
    "trpo+r3f+mesa+vasso",
)
SOON = {"fishr": {"fishr.anneal_steps": 2, "fishr.weight": 1.0}}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_every_precision_resumes_with_the_same_bits(
    algorithm: str, precision: str, drawings: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"precision": precision, "steps": 20, "eval_every": 10, "dropout": 0.2}
    config = small_config(drawings, algorithm=algorithm, hyper=SOON.get(algorithm[:5], {}), **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(config, out=tmp_path / "whole", command="test").fit()
    for after in (3, 13):
        stop(config, tmp_path / "parts", after)
    Trainer(config, out=tmp_path / "parts", command="test").fit()
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_gpu_trains_as_the_cpu_does(precision: str, drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, algorithm="disam", lr=1e-4)
    Trainer(config, out=tmp_path / "cpu", machine=Machine(device="cpu")).fit()
    mixed = small_config(drawings, algorithm="disam", lr=1e-4, precision=precision)
    Trainer(mixed, out=tmp_path / "gpu", machine=Machine(device="cuda", augment="host")).fit()
    cpu, gpu = (
        [line["loss"] for line in metrics(tmp_path / place) if line["kind"] == "train"] for place in ("cpu", "gpu")
    )
    np.testing.assert_allclose(cpu, gpu, rtol=0.02 if precision == "no" else 0.1)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_step_does_not_wait_for_the_gpu(algorithm: str, precision: str) -> None:
    config = small_config("emoji", algorithm=algorithm, precision=precision, hyper=SOON.get(algorithm[:5], {}))
    session = Session(config, accelerator(Machine(device="cuda"), precision), classes=3, domains=("a", "b"))
    batch = Batch(torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 1]))
    batch = Batch(*(part.pin_memory() for part in batch))
    session.make_step(batch)  # sets up optimizer state and cuDNN
    previous: Any = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            session.make_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode(previous)
    assert len(session.losses) == 4
