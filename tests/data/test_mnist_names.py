"""RotatedMNIST and ColoredMNIST: their sizes, names, fingerprints and splits."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from small_mnist import small_mnist, write_mnist

from steppe.data import ColoredMNIST, RotatedMNIST, make_splits, open_dataset, split_indices
from steppe.errors import SteppeError

KINDS = {"rotated-mnist": RotatedMNIST, "colored-mnist": ColoredMNIST}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mnist(tmp_path / "mnist")


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_set_is_the_beginning_of_the_shuffle(kind: str, root: Path) -> None:
    whole, part = KINDS[kind](root), KINDS[kind](root, images=100)
    assert sum(map(part.size, part.domains)) == 100
    for domain in part.domains:
        keys = [part.key(domain, index) for index in range(part.size(domain))]
        assert keys == [whole.key(domain, index) for index in range(len(keys))]
    assert part.fingerprint() != whole.fingerprint()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "rotated-mnist"),
        ({"seed": 3}, "rotated-mnist@3"),
        ({"images": 120}, "rotated-mnist-120"),
        ({"images": 120, "seed": 3}, "rotated-mnist-120@3"),
    ],
)
def test_the_name_opens_the_same_set_again(options: dict[str, int], name: str, root: Path, own_cache: Path) -> None:
    shutil.copytree(root, own_cache / "mnist")
    dataset = RotatedMNIST(**options)
    assert (dataset.name, dataset.spec) == (name, name)
    again = open_dataset(name, verify=False)
    assert isinstance(again, RotatedMNIST)
    assert (again.fingerprint(), again.name) == (dataset.fingerprint(), name)
    elsewhere = RotatedMNIST(root, **options)
    assert (elsewhere.name, elsewhere.spec) == (name, str(root / name))
    assert open_dataset(elsewhere.spec, verify=False).fingerprint() == dataset.fingerprint()
    assert open_dataset(root / name, verify=False).spec == elsewhere.spec


def test_the_fingerprint_is_that_of_the_contents(tmp_path: Path, root: Path) -> None:
    original = RotatedMNIST(root).fingerprint()
    assert len(original) == 16
    same = [
        write_mnist(tmp_path / "gz", compressed=True),
        write_mnist(tmp_path / "dots", dots=True),
        write_mnist(tmp_path / "both", dots=True, compressed=True),
        write_mnist(tmp_path / "torchvision" / "MNIST" / "raw").parent.parent,
    ]
    for folder in same:
        assert RotatedMNIST(folder).fingerprint() == original
        assert torch.equal(RotatedMNIST(folder).tensors("75")[0], RotatedMNIST(root).tensors("75")[0])
    others = [RotatedMNIST(root, seed=1), RotatedMNIST(root, images=299), ColoredMNIST(root)]
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        changed = small_mnist()
        changed[name].flat[-1] ^= 1
        others.append(RotatedMNIST(write_mnist(tmp_path / name, changed)))
    assert len({original, *(dataset.fingerprint() for dataset in others)}) == 1 + len(others)


def test_the_fingerprint_shows_a_torch_that_draws_other_numbers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = RotatedMNIST(root).fingerprint()
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    assert RotatedMNIST(root).fingerprint() != before


@pytest.mark.parametrize("kind", KINDS)
def test_the_splits_are_domainbeds(kind: str, root: Path) -> None:
    dataset = KINDS[kind](root)
    splits = make_splits(dataset, dataset.domains[0], trial_seed=2)
    assert (splits.protocol, splits.answer) == ("domainbed", "in")
    for number, domain in enumerate(dataset.domains):
        kept, out = split_indices(dataset.size(domain), 2, number)
        assert splits.evaluation[domain]["in"].tolist() == sorted(kept.tolist())
        assert splits.evaluation[domain]["out"].tolist() == sorted(out.tolist())


def test_a_set_travels_to_another_process_without_its_pixels(root: Path) -> None:
    dataset = ColoredMNIST(root, seed=2)
    x, _ = dataset.tensors("+90%")
    sent = pickle.dumps(dataset)
    assert len(sent) < 5_000
    assert torch.equal(pickle.loads(sent).tensors("+90%")[0], x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, r"seed of rotated-mnist must be at least 0 and below 2\^31, got -1"),
        ({"seed": 2**31}, r"below 2\^31"),
        ({"images": 5}, "needs at least 6 pictures and MNIST has 300, got 5"),
        ({"images": 301}, "MNIST has 300, got 301"),
    ],
)
def test_numbers_out_of_range(options: dict[str, int], message: str, root: Path) -> None:
    with pytest.raises(SteppeError, match=message):
        RotatedMNIST(root, **options)


def test_unknown_domains_and_names(root: Path) -> None:
    dataset = RotatedMNIST(root)
    for ask in (dataset.labels, dataset.tensors, dataset.size, lambda d: dataset.key(d, 0), dataset.grey):
        with pytest.raises(SteppeError, match="unknown domain '90' of 'rotated-mnist'"):
            ask("90")
    with pytest.raises(SteppeError, match="unknown data set 'rotated-minst'; did you mean 'rotated-mnist'"):
        open_dataset("rotated-minst")
    for spec in ("rotated-mnist-", "rotated-mnist@x", "mnist", "rotated-mnist@1-5"):
        with pytest.raises(SteppeError, match="unknown data set"):
            open_dataset(spec)
