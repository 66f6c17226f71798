"""How a run's pictures reach its network: the cache changes no bit, the place of the augmentation is told."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import metrics, outputs, small_config
from test_checkpoints import stop

from steppe.data import ImageFolders
from steppe.data.decoded import DecodedPictures
from steppe.data.decoded_places import cache_places
from steppe.errors import SteppeError
from steppe.training import Machine, Trainer
from steppe.training.inputs import kept_decoded
from steppe.training.progress import Silent


class Told(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[str, int, int]] = []
        self.steps: list[int] = []

    def begin(self, name: str, *, step: int, total: int) -> None:
        self.bars.append((name, step, total))

    def advance(self, step: int, loss: float) -> None:
        self.steps.append(step)

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains, two classes, eight pictures of each, 140 × 150: large enough to be kept decoded."""
    root = tmp_path_factory.mktemp("large") / "photos"
    draw = np.random.default_rng(0)
    for domain in ("line", "noto", "fluent"):
        for name in ("face", "vehicle"):
            (root / domain / name).mkdir(parents=True)
            for number in range(8):
                small = draw.integers(0, 256, (10, 10, 3), dtype=np.uint8)
                picture = Image.fromarray(small).resize((140, 150), Image.Resampling.BICUBIC)
                picture.save(root / domain / name / f"{number}.jpg")
    return root


def fit(photos: Path, out: Path, report: Told | None = None, **machine: Any) -> dict[str, Any]:
    Trainer(
        small_config(photos), out=out, machine=Machine(device="cpu", **machine), report=report, command="test"
    ).fit()
    return outputs(out)


def test_a_run_with_the_cache_is_the_run_without_it(photos: Path, tmp_path: Path) -> None:
    without = fit(photos, tmp_path / "off", cache="off")
    assert not cache_places(photos)[0].exists()
    told = Told()
    assert fit(photos, tmp_path / "auto", told) == without
    assert cache_places(photos)[0].is_dir()
    assert told.bars[0] == ("decoding photos", 0, 48)
    assert told.steps[:49] == list(range(49))
    assert len(told.lines) == 1
    again = Told()
    assert fit(photos, tmp_path / "again", again, workers=2) == without
    assert (again.lines, len(again.bars)) == ([], 1)
    shutil.rmtree(cache_places(photos)[0])


def test_the_runs_of_a_process_open_the_cache_once(photos: Path) -> None:
    dataset = ImageFolders(photos)
    first = kept_decoded(dataset, Machine(), Told())
    assert isinstance(first, DecodedPictures)
    assert kept_decoded(dataset, Machine(), Told()) is first
    assert kept_decoded(dataset, Machine(cache="off"), Told()) is dataset
    assert kept_decoded(ImageFolders(photos), Machine(), Told()) is not first


def test_a_run_says_where_its_pictures_were_augmented(photos: Path, tmp_path: Path) -> None:
    host = fit(photos, tmp_path / "host")
    device = fit(photos, tmp_path / "device", augment="device")
    assert host["result"]["augmentation"] == "host, 8 bits (Pillow)"
    assert device["result"]["augmentation"] == "device, float32"
    assert host["result"]["id"] == device["result"]["id"]  # where a run is computed is not what it is
    losses = [
        [line["loss"] for line in metrics(tmp_path / place) if line["kind"] == "train"] for place in ("host", "device")
    ]
    np.testing.assert_allclose(*losses, rtol=0.1)
    assert losses[0] != losses[1]
    assert fit(photos, tmp_path / "once more", augment="device", workers=2) == device


def test_a_run_that_is_stopped_and_goes_on_elsewhere_says_both(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kept_decoded(ImageFolders(photos), Machine(), Silent())  # so that the steps that are counted are the run's
    stop(small_config(photos), out, 5)
    result = fit(photos, out, augment="device")["result"]
    assert result["augmentation"] == "host, 8 bits (Pillow), then device, float32"


def test_a_run_on_the_device_resumes_with_the_same_bits(photos: Path, tmp_path: Path) -> None:
    class Stops(Told):
        def advance(self, step: int, loss: float) -> None:
            if step == 6 and not math.isnan(loss):
                raise KeyboardInterrupt

    whole = fit(photos, tmp_path / "whole", augment="device")
    with pytest.raises(KeyboardInterrupt):
        fit(photos, tmp_path / "parts", Stops(), augment="device", checkpoint_every=2)
    assert not (tmp_path / "parts" / "result.json").exists()
    assert fit(photos, tmp_path / "parts", augment="device") == whole


def test_wrong_options_are_named() -> None:
    for options, message in (
        ({"cache": "yes"}, "unknown cache 'yes'"),
        ({"augment": "gpu"}, "unknown augment 'gpu'"),
        ({"cache_gb": -1.0}, "cache_gb must be at least 0"),
        ({"cache_memory_gb": math.inf}, "cache_memory_gb must be at least 0"),
    ):
        with pytest.raises(SteppeError, match=message):
            Machine(**options)


def test_on_a_gpu_the_augmentation_is_there_unless_told_otherwise() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [Machine().augments_on(device) for device in (cpu, gpu)] == ["host", "device"]
    assert [Machine(augment="host").augments_on(device) for device in (cpu, gpu)] == ["host", "host"]
    assert [Machine(augment="device").augments_on(device) for device in (cpu, gpu)] == ["device", "device"]
