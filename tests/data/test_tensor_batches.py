"""Batches of a data set of tensors: in the order that pictures have, out of memory, a function of (seed, step)."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from small_mnist import write_mnist

from steppe.data import (
    ColoredMNIST,
    RotatedMNIST,
    balanced_loader,
    evaluation_loader,
    make_splits,
    open_dataset,
    tensor_transform,
)
from steppe.data.sampling import BalancedOrder
from steppe.errors import SteppeError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> RotatedMNIST:
    return RotatedMNIST(write_mnist(tmp_path_factory.mktemp("mnist")))


@pytest.fixture(scope="module")
def train(digits: RotatedMNIST) -> dict[str, np.ndarray]:
    return dict(make_splits(digits, "0").train)


def batches(digits, train, start=0, stop=4, **options):
    return balanced_loader(digits, train, batch_per_domain=7, start=start, stop=stop, seed=3, **options)


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_is_the_samples_that_pictures_of_the_same_set_would_be(digits, train) -> None:
    order = BalancedOrder(train, 7, 3)
    for step, batch in enumerate(batches(digits, train, stop=12)):  # epochs of 40
        slots = order.pictures(step)
        expected = [digits.tensors(domain, np.array([index])) for domain, index in slots]
        assert torch.equal(batch.x, torch.cat([x for x, _ in expected]))
        assert torch.equal(batch.y, torch.cat([y for _, y in expected]))
        assert batch.domain.tolist() == [list(train).index(domain) for domain, _ in slots]
    assert (batch.x.dtype, batch.x.shape) == (torch.float32, (35, 1, 28, 28))


def test_a_resumed_run_and_workers_see_the_same_and_no_process_is_started(digits, train) -> None:
    whole = list(batches(digits, train, stop=8))
    helped = batches(digits, train, stop=8, workers=2)
    for number, (batch, expected) in enumerate(zip(helped, whole, strict=True)):
        assert multiprocessing.active_children() == [], number
        assert same(batch, expected)
    assert all(same(a, b) for a, b in zip(batches(digits, train, start=5, stop=8), whole[5:], strict=True))


def test_a_transform_gets_the_batch_and_its_draws_depend_on_seed_and_step_alone(digits, train) -> None:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (35, 1, 28, 28)
        return x + torch.rand_like(x) + np.random.rand() + random.random()  # noqa: NPY002

    whole = list(batches(digits, train, transform=noisy))
    torch.manual_seed(99)
    random.seed(99)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # noqa: NPY002
    resumed = list(batches(digits, train, start=2, transform=noisy))
    assert all(same(a, b) for a, b in zip(resumed, whole[2:], strict=True))
    noise = [batch.x - plain.x for batch, plain in zip(whole, batches(digits, train), strict=True)]
    assert not torch.isclose(noise[0], noise[1]).all(), "each step draws anew"
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tobytes() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_evaluation_goes_through_the_samples_in_order(digits) -> None:
    indices = np.array([5, 30, 2, 2, 41, 7, 11])
    loader = evaluation_loader(digits, "75", indices, batch_size=3, workers=2)
    found = list(loader)
    assert [len(y) for _, y in found] == [3, 3, 1]
    assert same((torch.cat(column) for column in zip(*found, strict=True)), digits.tensors("75", indices))
    doubled = evaluation_loader(digits, "75", indices, batch_size=7, transform=lambda x: 2 * x)
    assert torch.equal(next(iter(doubled))[0], 2 * digits.tensors("75", indices)[0])


def test_threads_are_left_alone(digits, train) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in batches(digits, train):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_what_the_network_takes(digits) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    grey, _ = digits.tensors("15", np.arange(4))
    assert torch.equal(tensor_transform((0.0,), (1.0,))(grey), grey), "as they are"
    normalised = tensor_transform(mean, std)(grey)
    coloured = torch.rand(4, 2, 28, 28)
    shown = tensor_transform(mean, std)(coloured)
    assert normalised.shape == shown.shape == (4, 3, 28, 28)
    for channel in range(3):
        torch.testing.assert_close(normalised[:, channel], (grey[:, 0] - mean[channel]) / std[channel])
        level = coloured[:, channel] if channel < 2 else torch.zeros(4, 28, 28)
        torch.testing.assert_close(shown[:, channel], (level - mean[channel]) / std[channel])
    assert torch.equal(tensor_transform((0.0,) * 2, (1.0,) * 2)(coloured), coloured)


def test_bad_arguments(digits, train) -> None:
    with pytest.raises(SteppeError, match="workers cannot be negative"):
        batches(digits, train, workers=-1)
    with pytest.raises(SteppeError, match="workers cannot be negative"):
        evaluation_loader(digits, "0", np.arange(3), batch_size=2, workers=-1)
    with pytest.raises(SteppeError, match="unknown domain '90' of 'rotated-mnist'"):
        batches(digits, {"90": np.arange(3)})
    emoji = open_dataset("emoji")
    with pytest.raises(SteppeError, match="pictures need a transform"):
        batches(emoji, {"line": np.arange(3)})
    with pytest.raises(SteppeError, match="pictures need a transform"):
        evaluation_loader(emoji, "line", np.arange(3), batch_size=2)


def test_files_that_went_away_stop_with_a_plain_message(tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "mnist")
    dataset = ColoredMNIST(root)
    loader = balanced_loader(dataset, {"+90%": np.arange(3)}, batch_per_domain=1, start=0, stop=1, seed=0)
    (root / "train-images-idx3-ubyte").unlink()
    with pytest.raises(SteppeError, match=r"cannot read .*train-images-idx3-ubyte: No such file"):
        list(loader)
