"""Sharpness on the held-out domain during a run: recorded at every evaluation, without any effect on the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import metrics, outputs, small_config
from torch.nn import functional as F

from steppe.data import open_dataset
from steppe.data.loader import evaluation_loader
from steppe.data.splits import make_splits
from steppe.errors import SteppeError
from steppe.models import build_classifier
from steppe.training.inputs import input_transform
from steppe.training.machine import Machine
from steppe.training.trainer import Trainer


@pytest.mark.parametrize("algorithm", ["erm", "lookahead"])
def test_a_run_that_is_watched_is_the_same_run(drawings: Path, tmp_path: Path, algorithm: str) -> None:
    found = []
    for name, machine in (("plain", Machine()), ("watched", Machine(sharpness=4))):
        Trainer(small_config(drawings, algorithm=algorithm), out=tmp_path / name, machine=machine).fit()
        found.append(outputs(tmp_path / name))
    plain, watched = found
    rows = [line for line in watched["metrics"] if line["kind"] == "eval"]
    assert len(rows) == 3
    for line in rows:
        assert line.pop("gradient_variance") > 0
        assert line.pop("gradient_norm") > 0
    assert watched == plain


def test_it_is_the_variance_on_the_held_out_pictures(drawings: Path, tmp_path: Path) -> None:
    """Against the selected weights, whose evaluation's row must say the same."""
    config = small_config(drawings)
    result = Trainer(config, out=tmp_path, machine=Machine(sharpness=3)).fit()
    dataset = open_dataset(drawings)
    splits = make_splits(dataset, "line", trial_seed=config.seed)
    model = build_classifier("test_resnet", 3, pretrained=False, image_size=32)
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    model.eval()
    pictures = np.asarray(splits.evaluation["line"][splits.answer])
    size = min(32, len(pictures) // 3)
    chosen = np.random.default_rng(0).permutation(pictures)[: 3 * size]
    transform = input_transform(dataset, model, 32, augment=False)
    gradients = []
    for x, y in evaluation_loader(dataset, "line", chosen, batch_size=size, transform=transform):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        gradients.append(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]))
    wanted = torch.stack(gradients).var(0, correction=1).sum().item()
    (row,) = [line for line in metrics(tmp_path) if line["kind"] == "eval" and line["step"] == result.selected_step]
    assert len(gradients) == 3
    assert row["gradient_variance"] == pytest.approx(wanted, rel=1e-4)


def test_more_batches_than_pictures_are_refused(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match="on 500 batches of 'line', which has"):
        Trainer(small_config(drawings), out=tmp_path, machine=Machine(sharpness=500)).fit()


def test_one_batch_has_no_variance() -> None:
    with pytest.raises(SteppeError, match="at least 2 batches, got 1"):
        Machine(sharpness=1)
