"""DomainBed's augmentation by what it does to real pictures, and the evaluation transform to the last bit."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from steppe.data import eval_transform, open_dataset, train_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bus() -> Image.Image:
    """A red picture of the data set that looks another way mirrored."""
    dataset = open_dataset("emoji")
    names = [drawing.name for drawing in dataset.drawings]
    return dataset.image("noto", names.index("fire engine"))


def test_evaluation_resizes_without_keeping_the_shape_and_normalizes() -> None:
    picture = bus().resize((90, 50))
    found = eval_transform(48, MEAN, STD)(picture)
    pixels = np.asarray(picture.resize((48, 48), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    expected = torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)
    assert (found.shape, found.dtype) == ((3, 48, 48), torch.float32)
    torch.testing.assert_close(found, expected)


def test_training_mirrors_half_and_greys_a_tenth() -> None:
    transform = train_transform(32, (0, 0, 0), (1, 1, 1))
    plain = eval_transform(32, (0, 0, 0), (1, 1, 1))(bus())
    mirrored = grey = 0
    for _ in range(600):
        x = transform(bus())
        assert x.shape == (3, 32, 32)
        assert x.min() >= 0
        assert x.max() <= 1
        grey += bool((x == x[:1]).all())
        shape = x.mean(0) - x.mean()
        straight, turned = ((shape * (side - side.mean())).sum() for side in (plain.mean(0), plain.mean(0).flip(1)))
        mirrored += bool(turned > straight)
    assert 0.42 < mirrored / 600 < 0.58
    assert 0.06 < grey / 600 < 0.14


def test_training_crops_between_70_and_100_percent_of_the_area() -> None:
    """A picture whose red and green say where a pixel came from shows how much of it is left."""
    side = 256
    ramp = np.zeros((side, side, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(side)[None], np.arange(side)[:, None]
    crop = train_transform(64, (0, 0, 0), (1, 1, 1)).transforms[0]
    areas, ratios = [], []
    for _ in range(300):
        corner = np.asarray(crop(Image.fromarray(ramp)), dtype=float)
        width = (corner[32, -1, 0] - corner[32, 0, 0]) * 64 / 63
        height = (corner[-1, 32, 1] - corner[0, 32, 1]) * 64 / 63
        areas.append(width * height / side**2)
        ratios.append(width / height)
    assert 0.68 < min(areas) < 0.74
    assert 0.96 < max(areas) < 1.02
    assert 0.73 < min(ratios) < 0.85
    assert 1.17 < max(ratios) < 1.36


def test_training_jitters_brightness_contrast_saturation_and_hue() -> None:
    jitter = train_transform(64, MEAN, STD).transforms[2]
    assert [getattr(jitter, name) for name in ("brightness", "contrast", "saturation", "hue")] == [
        (0.7, 1.3),
        (0.7, 1.3),
        (0.7, 1.3),
        (-0.3, 0.3),
    ]
