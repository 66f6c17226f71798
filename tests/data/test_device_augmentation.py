"""The device's augmentation against torchvision's functions on float tensors, one picture at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from steppe.data import (
    DeviceAugmentation,
    balanced_loader,
    device_augmentation,
    open_dataset,
    raw_loader,
    train_transform,
)
from steppe.data.device_augmentation import RawBatch, hue_shifted, jittered, resampling
from steppe.errors import SteppeError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}
"""Of float32 in [0, 1]: a sum over a resized row has some ten terms, and the hue is a quotient of differences."""


def pictures(count: int, *, seed: int = 0, low: int = 5, high: int = 70) -> list[Tensor]:
    """uint8 [H, W, 3] of many sizes: real drawings and noise."""
    draw = np.random.default_rng(seed)
    emoji = open_dataset("emoji")
    found = []
    for number in range(count):
        height, width = draw.integers(low, high, 2).tolist()
        if number % 2:
            found.append(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        else:
            found.append(np.array(emoji.image("noto", int(draw.integers(300))).resize((width, height))))
    return [torch.from_numpy(each) for each in found]


def raw_batch(parts: list[Tensor], *, seed: int = 0) -> RawBatch:
    torch.manual_seed(seed)
    drawn = [train_transform(8, MEAN, STD).draw(50, 50) for _ in parts]
    count = len(parts)
    return RawBatch(
        parts=torch.cat([part.flatten() for part in parts]),
        sizes=torch.tensor([part.shape[:2] for part in parts]),
        mirrored=torch.tensor([each.mirrored for each in drawn]),
        order=torch.tensor([each.order for each in drawn]),
        factors=torch.tensor([each.factors for each in drawn]),
        grey=torch.arange(count) % 3 == 0,
        y=torch.arange(count),
        domain=torch.zeros(count, dtype=torch.int64),
    )


def by_torchvision(part: Tensor, raw: RawBatch, number: int, size: int) -> Tensor:
    """The same picture by torchvision's functions, in float32."""
    x = part.permute(2, 0, 1).float() / 255
    x = F.resize(x, [size, size], antialias=True)
    if raw.mirrored[number]:
        x = F.horizontal_flip(x)
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for which in raw.order[number].tolist():
        x = adjust[which](x, float(raw.factors[number, which]))
    if raw.grey[number]:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    return F.normalize(x, list(MEAN), list(STD))


@pytest.mark.parametrize("size", [7, 24, 48])
def test_a_batch_is_what_torchvision_makes_of_each_picture(size: int) -> None:
    parts = pictures(24)
    raw = raw_batch(parts)
    found = DeviceAugmentation(size, MEAN, STD, CPU)(raw)
    assert found.x.shape == (24, 3, size, size)
    assert (found.y.tolist(), found.domain.tolist()) == (list(range(24)), [0] * 24)
    for number, part in enumerate(parts):
        # A standard deviation of 0.22 stretches the differences.
        torch.testing.assert_close(
            found.x[number], by_torchvision(part, raw, number, size), rtol=0.0, atol=TOLERANCE["atol"] / 0.22
        )


@settings(max_examples=60)
@given(length=st.integers(1, 60), size=st.integers(1, 60), more=st.integers(0, 9))
def test_a_row_is_resized_as_torch_does_it_antialiased(length: int, size: int, more: int) -> None:
    weights = resampling(torch.tensor([length]), length + more, size)[0]
    assert weights.shape == (size, length + more)
    assert not weights[:, length:].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(size))
    unit = torch.eye(length)[:, None, None]  # what becomes of each source pixel
    expected = torch.nn.functional.interpolate(unit, (1, size), mode="bilinear", antialias=True)[:, 0, 0]
    torch.testing.assert_close(weights[:, :length], expected.T, **TOLERANCE)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), turns=st.floats(-0.5, 0.5, width=32), levels=st.sampled_from([2, 3, 256]))
def test_the_hue_is_turned_as_torchvision_turns_it(seed: int, turns: float, levels: int) -> None:
    """Few levels make many greys, blacks, and pixels with two equal channels."""
    draw = np.random.default_rng(seed)
    x = torch.from_numpy(draw.integers(0, levels, (1, 3, 8, 9)).astype(np.float32)) / (levels - 1)
    found = hue_shifted(x, torch.tensor(turns)[None, None, None])
    torch.testing.assert_close(found, F.adjust_hue(x, turns), **TOLERANCE)


def test_every_order_of_the_four_changes() -> None:
    import itertools

    orders = torch.tensor(list(itertools.permutations(range(4))))
    torch.manual_seed(3)
    x = torch.rand(24, 3, 6, 5)
    factors = torch.rand(24, 4) * torch.tensor([0.6, 0.6, 0.6, 0.6]) + torch.tensor([0.7, 0.7, 0.7, -0.3])
    found = jittered(x.clone(), orders, factors)
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for number in range(24):
        expected = x[number]
        for which in orders[number].tolist():
            expected = adjust[which](expected, float(factors[number, which]))
        torch.testing.assert_close(found[number], expected, **TOLERANCE)


def test_portions_of_a_batch_are_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = pictures(9)
    whole = DeviceAugmentation(16, MEAN, STD, CPU)(raw_batch(parts)).x
    for portion in (1, 60_000, 200_000):
        monkeypatch.setattr(device_augmentation, "PORTION_BYTES", portion)
        torch.testing.assert_close(DeviceAugmentation(16, MEAN, STD, CPU)(raw_batch(parts)).x, whole, **TOLERANCE)


def loaders(size: int, start: int = 0, workers: int = 0):
    emoji = open_dataset("emoji")
    common = {
        "dataset": emoji,
        "train": {domain: np.arange(30) for domain in ("noto", "fluent")},
        "batch_per_domain": 8,
        "start": start,
        "stop": 4,
        "seed": 2,
        "transform": train_transform(size, (0, 0, 0), (1, 1, 1)),
        "workers": workers,
    }
    return raw_loader(**common), balanced_loader(**common)


def test_both_ways_show_the_same_pictures_within_a_few_levels() -> None:
    """Cut, mirrored and coloured alike; Pillow rounds to 8 bits at every step, and so do its hues."""
    raw, host = loaders(48)
    augment = DeviceAugmentation(48, (0, 0, 0), (1, 1, 1), CPU)
    differences = []
    for ours, theirs in zip(map(augment, raw), host, strict=True):
        assert torch.equal(ours.y, theirs.y)
        assert torch.equal(ours.domain, theirs.domain)
        differences.append((ours.x - theirs.x).abs().flatten(1) * 255)
    levels = torch.cat(differences)
    assert levels.mean() < 1.5
    assert levels.mean(1).max() < 4
    assert levels.quantile(0.99) < 8


@pytest.mark.parametrize("start", [0, 2])
def test_workers_and_a_resume_change_no_pixel(start: int) -> None:
    augment = DeviceAugmentation(24, MEAN, STD, CPU)
    alone = [augment(raw).x for raw in loaders(24)[0]][start:]
    helped = [augment(raw).x for raw in loaders(24, start, workers=2)[0]]
    assert len(helped) == 4 - start
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_a_very_large_part_is_resized_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [raw.sizes for raw in loaders(24)[0]]
    assert torch.cat(whole).min() > 24
    monkeypatch.setattr(device_augmentation, "LARGEST", 3400)
    sizes = torch.cat([raw.sizes for raw in loaders(24)[0]])
    areas = torch.cat(whole).prod(1)
    assert torch.equal((sizes == 24).all(1), areas > 3400)
    assert 0 < (areas > 3400).sum() < len(areas)
    _, host = loaders(24)
    augment = DeviceAugmentation(24, (0, 0, 0), (1, 1, 1), CPU)
    for raw, theirs in zip(loaders(24)[0], host, strict=True):
        assert (augment(raw).x - theirs.x).abs().mean() < 1.5 / 255


def test_it_does_not_touch_the_global_random_state() -> None:
    state = torch.get_rng_state()
    raw, _ = loaders(24)
    augment = DeviceAugmentation(24, MEAN, STD, CPU)
    for batch in raw:
        augment(batch)
        assert torch.equal(torch.get_rng_state(), state)


def test_bad_arguments_are_those_of_the_other_loader() -> None:
    with pytest.raises(SteppeError, match="unknown domain 'nato'"):
        raw_loader(
            open_dataset("emoji"),
            {"nato": np.arange(3)},
            batch_per_domain=1,
            start=0,
            stop=1,
            seed=0,
            transform=train_transform(8, MEAN, STD),
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_what_the_cpu_does_without_being_waited_for() -> None:
    raw = raw_batch(pictures(24))
    gpu = DeviceAugmentation(48, MEAN, STD, torch.device("cuda"))
    first = gpu(raw)
    pinned = RawBatch(*(part.pin_memory() for part in raw))
    previous = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = gpu(pinned)
    finally:
        torch.cuda.set_sync_debug_mode(previous)
    assert torch.equal(first.x, second.x)
    expected = DeviceAugmentation(48, MEAN, STD, CPU)(raw).x
    torch.testing.assert_close(second.x.cpu(), expected, rtol=0.0, atol=1e-4)
