"""The host's augmentation is torchvision's, to the bit: what it draws, and what it does with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from steppe.data import hue, open_dataset, train_transform
from steppe.data.augmentation import BRIGHTNESS, CONTRAST, HUE, SATURATION, Drawn, TrainTransform, augmented, cut

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def reference(size: int) -> v2.Compose:
    """DomainBed's transforms, in torchvision's second version."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.7, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v2.RandomGrayscale(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN), list(STD)),
        ]
    )


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def drawing(number: int) -> Image.Image:
    return open_dataset("emoji").image("fluent", number)


@settings(max_examples=60)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    real=st.booleans(),
)
def test_it_is_torchvisions_to_the_bit(width: int, height: int, size: int, seed: int, real: bool) -> None:
    picture = drawing(seed % 300).resize((width, height)) if real else noise(width, height, seed)
    torch.manual_seed(seed)
    expected = reference(size)(picture)
    after = torch.rand(())
    for given_as in (picture, np.asarray(picture)):
        torch.manual_seed(seed)
        found = train_transform(size, MEAN, STD)(given_as)
        assert torch.rand(()) == after  # as many random numbers were drawn
        assert (found.shape, found.dtype) == ((3, size, size), torch.float32)
        assert torch.equal(found, expected)


def test_it_is_domainbeds_own_within_rounding() -> None:
    """torchvision's first version, which DomainBed uses: the same 8-bit pixels, scaled by a division."""
    from torchvision import transforms as v1

    domainbed = v1.Compose(
        [
            v1.RandomResizedCrop(32, scale=(0.7, 1.0)),
            v1.RandomHorizontalFlip(),
            v1.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v1.RandomGrayscale(),
            v1.ToTensor(),
            v1.Normalize(mean=list(MEAN), std=list(STD)),
        ]
    )
    for seed in range(20):
        picture = drawing(seed)
        torch.manual_seed(seed)
        expected = domainbed(picture)
        torch.manual_seed(seed)
        torch.testing.assert_close(train_transform(32, MEAN, STD)(picture), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.7, 0.83, 1.0, 1.17, 1.3])
def test_each_change_of_colour_is_pillows(factor: float) -> None:
    picture = noise(23, 17)
    for number, enhance in (
        (BRIGHTNESS, ImageEnhance.Brightness),
        (CONTRAST, ImageEnhance.Contrast),
        (SATURATION, ImageEnhance.Color),
    ):
        order = (number, *({0, 1, 2, 3} - {number}))
        factors = [1.0, 1.0, 1.0, 0.0]
        factors[number] = factor
        drawn = Drawn(0, 0, 17, 17, False, order, tuple(factors), False)
        square = picture.crop((0, 0, 17, 17))
        expected = F.adjust_hue(enhance(square).enhance(factor), 0.0)
        assert np.array_equal(np.asarray(augmented(square, drawn, 17)), np.asarray(expected))


@pytest.mark.parametrize("shift", [-0.3, -0.1, -0.001, 0.0, 0.004, 0.2, 0.3])
def test_the_hue_is_turned_as_torchvision_turns_it(shift: float) -> None:
    picture = noise(64, 64)
    drawn = Drawn(0, 0, 64, 64, False, (HUE, 0, 1, 2), (1.0, 1.0, 1.0, shift), False)
    assert np.array_equal(np.asarray(augmented(picture, drawn, 64)), np.asarray(F.adjust_hue(picture, shift)))


@pytest.fixture(scope="module")
def tables() -> tuple[np.ndarray, np.ndarray]:
    return hue._made()


def test_hues_from_tables_are_pillows(tables: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [noise(64, 64, 5), noise(1, 1), drawing(7), *(drawing(n).resize((224, 224)) for n in (1, 9))]
    pictures.append(Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)))
    for shift in range(-76, 77):
        turns = (shift + 0.5 * np.sign(shift)) / 255
        for picture in pictures:
            monkeypatch.setattr(hue, "_tables", tables)
            found = np.asarray(hue.turned(picture, turns))
            monkeypatch.setattr(hue, "_tables", None)
            assert np.array_equal(found, np.asarray(hue.turned(picture, turns)))


def test_tables_have_every_colour(tables: tuple[np.ndarray, np.ndarray]) -> None:
    draw = np.random.default_rng(2)
    colours = draw.integers(0, 256, (1, 5000, 3), dtype=np.uint8)
    colours[0, :8] = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    code = colours.astype(np.int64) @ [1, 256, 65536]
    for table, mode, back in ((tables[0], "RGB", "HSV"), (tables[1], "HSV", "RGB")):
        expected = np.asarray(Image.frombytes(mode, (5000, 1), colours.tobytes()).convert(back))
        assert np.array_equal(table[code], expected.astype(np.int64) @ [1, 256, 65536])


def test_tables_are_made_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hue, "_tables", None)
    monkeypatch.setattr(hue, "_made", lambda: ("to", "from"))
    hue.prepare(hue.WORTHWHILE - 1)
    assert hue._tables is None
    hue.prepare(hue.WORTHWHILE)
    assert hue._tables == ("to", "from")


def test_all_that_is_drawn_is_drawn_as_often_as_it_should_be() -> None:
    transform = train_transform(8, MEAN, STD)
    drawn = [transform.draw(400, 400) for _ in range(2000)]
    areas = np.array([each.height * each.width / 160_000 for each in drawn])
    ratios = np.log([each.width / each.height for each in drawn])
    assert 0.695 < areas.min() < 0.72
    assert 0.98 < areas.max() <= 1
    assert -0.3 < ratios.min() < -0.2
    assert 0.2 < ratios.max() < 0.3
    assert 0.46 < np.mean([each.mirrored for each in drawn]) < 0.54
    assert 0.08 < np.mean([each.grey for each in drawn]) < 0.12
    assert len({each.order for each in drawn}) == 24
    for number, (low, high) in enumerate([(0.7, 1.3)] * 3 + [(-0.3, 0.3)]):
        factors = np.array([each.factors[number] for each in drawn])
        assert low <= factors.min() < low + 0.01
        assert high - 0.01 < factors.max() <= high
        assert abs(factors.mean() - (low + high) / 2) < 0.02
    for each in drawn:
        assert 0 <= each.top <= 400 - each.height
        assert 0 <= each.left <= 400 - each.width


def test_of_an_array_nothing_but_the_part_is_read(tmp_path: Path) -> None:
    """A part of a memory-mapped picture is cut out of the map."""
    picture = noise(50, 40)
    drawn = Drawn(3, 5, 20, 30, False, (0, 1, 2, 3), (1.0, 1.0, 1.0, 0.0), False)
    path = tmp_path / "pixels"
    path.write_bytes(np.asarray(picture).tobytes())
    mapped = np.memmap(path, np.uint8, "r", shape=(40, 50, 3))
    assert np.array_equal(np.asarray(cut(mapped, drawn)), np.asarray(picture.crop((5, 3, 35, 23))))


def test_it_travels_to_spawned_workers() -> None:
    import pickle

    transform: TrainTransform = pickle.loads(pickle.dumps(train_transform(16, MEAN, STD)))
    torch.manual_seed(1)
    found = transform(drawing(3))
    torch.manual_seed(1)
    assert torch.equal(found, reference(16)(drawing(3)))
