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
