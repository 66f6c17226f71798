"""Runs on data sets of tensors: as a loop of one's own would train them, with DomainBed's network or another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_mnist import write_mnist
from small_runs import metrics, outputs, small_config
from torch.nn import functional as F

import steppe
from steppe.benchmark.protocol import jobs
from steppe.benchmark.store import Store
from steppe.data import ColoredMNIST, RotatedMNIST, make_splits
from steppe.data.sampling import BalancedOrder
from steppe.errors import SteppeError
from steppe.models import build_classifier
from steppe.training import Machine, RunConfig, Trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("mnist"))


def config_of(dataset: RotatedMNIST | ColoredMNIST, **changes: Any) -> RunConfig:
    settings = {"backbone": "mnist_cnn", "image_size": 28, "pretrained": True, "steps": 4, "eval_every": 4}
    return small_config(dataset.spec, **{**settings, "held_out": dataset.domains[-1], **changes})


def fit(config: RunConfig, out: Path, dataset: RotatedMNIST | ColoredMNIST, **options: Any) -> Path:
    Trainer(config, out=out, dataset=dataset, command="test", **options).fit()
    return out


def by_hand(config: RunConfig, dataset: RotatedMNIST | ColoredMNIST) -> dict[str, torch.Tensor]:
    """Plain PyTorch on whole tensors, without a loader: the weights at the end."""
    splits = make_splits(dataset, config.held_out, trial_seed=config.seed)
    order = BalancedOrder(splits.train, config.batch_per_domain, config.seed)
    tensors = {domain: dataset.tensors(domain) for domain in splits.train}
    torch.manual_seed(config.seed)
    model = build_classifier("mnist_cnn", len(dataset.classes), channels=dataset.shape[0])
    model = model.to(memory_format=torch.channels_last)
    base = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    optimizer = steppe.DISAM(base, rho=0.05, lam=0.1, model=model)
    for step in range(config.steps):
        chosen = order.indices(step)
        x = torch.cat([tensors[domain][0][indices] for domain, indices in chosen.items()])
        y = torch.cat([tensors[domain][1][indices] for domain, indices in chosen.items()])
        domain = torch.arange(len(chosen)).repeat_interleave(config.batch_per_domain)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            losses = F.cross_entropy(model(x), y, reduction="none")  # noqa: B023 - called in this turn
            loss = optimizer.objective(losses, domain)  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)
    return model.state_dict()


@pytest.mark.parametrize("kind", [RotatedMNIST, ColoredMNIST])
def test_a_run_equals_a_loop_on_the_tensors_bit_for_bit(kind: type, root: Path, tmp_path: Path) -> None:
    dataset = kind(root)
    config = config_of(dataset, algorithm="disam")
    weights = by_hand(config, dataset)
    run = fit(config, tmp_path, dataset)
    found = load_file(run / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


def test_what_a_run_says_of_a_picture_is_what_its_weights_say_of_the_tensor(root: Path, tmp_path: Path) -> None:
    dataset = RotatedMNIST(root, seed=1)
    run = fit(config_of(dataset), tmp_path, dataset)
    model = build_classifier("mnist_cnn", 10, channels=1).eval()
    model.load_state_dict(load_file(run / "model.safetensors"))
    predictions = json.loads((run / "predictions.json").read_text())
    assert list(predictions) == list(dataset.domains)
    for domain, rows in predictions.items():
        x, y = dataset.tensors(domain, np.array([row["index"] for row in rows]))
        with torch.no_grad():
            assert model(x).argmax(dim=1).tolist() == [row["predicted"] for row in rows]
        assert y.tolist() == [row["label"] for row in rows]
        assert [dataset.key(domain, row["index"]) for row in rows] == [row["key"] for row in rows]
    stored = json.loads((run / "config.json").read_text())
    assert (stored["dataset"], stored["dataset_fingerprint"]) == ("rotated-mnist@1", dataset.fingerprint())
    assert stored["split"] == "domainbed"


def test_workers_and_a_stop_change_nothing(root: Path, tmp_path: Path) -> None:
    dataset = ColoredMNIST(root)
    config = config_of(dataset, algorithm="coral+sam", steps=8)
    whole = outputs(fit(config, tmp_path / "whole", dataset))
    assert outputs(fit(config, tmp_path / "workers", dataset, machine=Machine(workers=2))) == whole

    trainer = Trainer(config, out=tmp_path / "stopped", dataset=ColoredMNIST(root), command="test")
    save = trainer._save

    def stopped(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    trainer._save = stopped  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert [line["step"] for line in metrics(tmp_path / "stopped") if line["kind"] == "eval"] == [4]
    assert outputs(fit(config, tmp_path / "stopped", dataset)) == whole


def test_a_picture_backbone_gets_them_in_colour_and_normalised(root: Path, tmp_path: Path) -> None:
    dataset = ColoredMNIST(root)
    run = fit(config_of(dataset, backbone="test_resnet", pretrained=False), tmp_path, dataset)
    model = build_classifier("test_resnet", 2, pretrained=False).eval()
    model.load_state_dict(load_file(run / "model.safetensors"))
    rows = json.loads((run / "predictions.json").read_text())["-90%"]
    two, _ = dataset.tensors("-90%", np.array([row["index"] for row in rows]))
    x = torch.cat([two, torch.zeros_like(two[:, :1])], dim=1)
    x = (x - torch.tensor(model.mean)[:, None, None]) / torch.tensor(model.std)[:, None, None]
    with torch.no_grad():
        confidence = model(x).softmax(dim=1).amax(dim=1)
    assert confidence.tolist() == pytest.approx([row["confidence"] for row in rows], abs=1e-5)


def test_mnist_cnn_takes_pictures_too(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, backbone="mnist_cnn", steps=2, eval_every=2)
    Trainer(config, out=tmp_path, command="test").fit()
    assert load_file(tmp_path / "model.safetensors")["backbone.layers.0.weight"].shape == (64, 3, 3, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "efficientnet_lite0", "image_size": 224},
        {"image_size": 32},
        {"backbone": "test_resnet", "image_size": 56},
    ],
)
def test_settings_that_do_not_fit_are_named_before_anything_is_written(
    changes: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    dataset = RotatedMNIST(root)
    config = config_of(dataset, **changes)
    message = (
        r"'rotated-mnist' consists of tensors, 1 × 28 × 28, which are used as they are: set image_size to 28, and "
        r"backbone to mnist_cnn, DomainBed's for it \(--backbone mnist_cnn --image-size 28\)"
    )
    with pytest.raises(SteppeError, match=message):
        Trainer(config, out=tmp_path / "run", dataset=dataset)
    with pytest.raises(SteppeError, match=message):
        jobs(Store(tmp_path / "runs"), dataset, [config])
    assert not list(tmp_path.iterdir())


def test_settings_that_mnist_cnn_has_no_use_for_make_no_other_run(root: Path, tmp_path: Path) -> None:
    dataset = RotatedMNIST(root)
    ids = {
        Trainer(config_of(dataset, pretrained=one, frozen_batch_norm=other), out=tmp_path, dataset=dataset).id
        for one in (True, False)
        for other in (True, False)
    }
    assert len(ids) == 1
    others = [RotatedMNIST(root, seed=1), RotatedMNIST(root, images=240), ColoredMNIST(root)]
    ids |= {Trainer(config_of(other), out=tmp_path, dataset=other).id for other in others}
    assert len(ids) == 4
