"""Balanced batches: what is in them depends on seed, step and slot, and on nothing else."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from steppe.data import (
    DomainDataset,
    balanced_loader,
    eval_transform,
    evaluation_loader,
    make_splits,
    open_dataset,
    train_transform,
)
from steppe.data.sampling import BalancedOrder
from steppe.errors import SteppeError

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def emoji() -> DomainDataset:
    return open_dataset("emoji")


@pytest.fixture(scope="module")
def train(emoji: DomainDataset) -> dict[str, np.ndarray]:
    return dict(make_splits(emoji, "line").train)


def augmented(emoji, train, start, stop, seed=3, workers=0, per_domain=5):
    return balanced_loader(
        emoji,
        train,
        batch_per_domain=per_domain,
        start=start,
        stop=stop,
        seed=seed,
        transform=train_transform(48, HALF, HALF),
        workers=workers,
    )


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Numbered(DomainDataset):
    """Pictures of one pixel that say which they are: red is the domain's number, green the index."""

    name = spec = "numbered"
    classes = ("even", "odd")

    def __init__(self, **sizes: int) -> None:
        self.domains = tuple(sizes)
        self.sizes = sizes

    def labels(self, domain: str) -> np.ndarray:
        return np.arange(self.sizes[domain]) % 2

    def image(self, domain: str, index: int) -> Image.Image:
        if not 0 <= index < self.sizes[domain]:
            raise SteppeError(f"cannot read the picture {domain}/{index}")
        return Image.new("RGB", (1, 1), (self.domains.index(domain), index, 0))

    def key(self, domain: str, index: int) -> str:
        return f"{domain}/{index}"

    def fingerprint(self) -> str:
        return "numbered"

    def everything(self) -> dict[str, np.ndarray]:
        return {domain: np.arange(size) for domain, size in self.sizes.items()}


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.tensor(picture.getpixel((0, 0)), dtype=torch.float32).reshape(3, 1, 1)


def draws(picture: Image.Image) -> torch.Tensor:
    """One number from each of the global generators."""
    return torch.tensor([float(torch.rand(())), np.random.rand(), random.random()]).reshape(3, 1, 1)  # noqa: NPY002


def test_batch_has_the_shapes_types_and_labels_it_promises(emoji, train) -> None:
    (batch,) = augmented(emoji, train, 0, 1)
    assert (batch.x.shape, batch.x.dtype) == ((15, 3, 48, 48), torch.float32)
    assert batch.y.dtype == batch.domain.dtype == torch.int64
    assert batch.domain.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert -1 <= batch.x.min() < -0.5
    assert 0.9 < batch.x.max() <= 1


def test_every_batch_is_balanced_and_rightly_labelled() -> None:
    dataset = Numbered(a=7, b=12, c=2)
    loader = balanced_loader(
        dataset, dataset.everything(), batch_per_domain=4, start=0, stop=9, seed=0, transform=as_tensor
    )
    assert len(loader) == 9
    for batch in loader:
        assert torch.bincount(batch.domain).tolist() == [4, 4, 4]
        assert torch.equal(batch.x[:, 0, 0, 0].long(), batch.domain)
        assert torch.equal(batch.x[:, 1, 0, 0].long() % 2, batch.y)


def test_domain_is_the_index_into_the_source_domains_in_their_order() -> None:
    dataset = Numbered(a=5, b=5, c=5)
    sources = {"c": np.arange(5), "a": np.arange(5)}
    (batch,) = balanced_loader(dataset, sources, batch_per_domain=2, start=0, stop=1, seed=0, transform=as_tensor)
    assert batch.domain.tolist() == [0, 0, 1, 1]
    assert batch.x[:, 0, 0, 0].tolist() == [2, 2, 0, 0]


@given(n=st.integers(1, 20), per_domain=st.integers(1, 25), seed=st.integers(0, 5), start=st.integers(0, 40))
def test_every_epoch_covers_every_picture_once(n: int, per_domain: int, seed: int, start: int) -> None:
    """From step 0 a domain's stream is one permutation after another; read from elsewhere it is the same."""
    indices = np.arange(100, 100 + n)
    order = BalancedOrder({"only": indices}, per_domain, seed)
    steps = start + -(-2 * n // per_domain) + 1
    stream = [index for step in range(steps) for _, index in order.pictures(step)]
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == indices.tolist()
    resumed = BalancedOrder({"only": indices}, per_domain, seed)
    assert [index for _, index in resumed.pictures(start)] == stream[start * per_domain :][:per_domain]


def test_epochs_domains_and_seeds_are_shuffled_differently() -> None:
    everything = {"a": np.arange(50), "b": np.arange(50)}
    order, other = BalancedOrder(everything, 50, 0), BalancedOrder(everything, 50, 1)
    orders = {tuple(index for _, index in pictures[:50]) for pictures in (order.pictures(0), order.pictures(1))}
    orders |= {tuple(index for _, index in order.pictures(0)[50:]), tuple(i for _, i in other.pictures(0)[:50])}
    assert len(orders) == 4
    assert tuple(range(50)) not in orders


def test_a_resumed_run_sees_the_same_pixels(emoji, train) -> None:
    whole = list(augmented(emoji, train, 0, 8))
    resumed = list(augmented(emoji, train, 5, 8))
    assert len(resumed) == 3
    assert all(same(a, b) for a, b in zip(whole[5:], resumed, strict=True))


@pytest.mark.parametrize("start", [0, 4])
def test_workers_change_no_pixel(emoji, train, start: int) -> None:
    alone = list(augmented(emoji, train, start, start + 5))
    helped = list(augmented(emoji, train, start, start + 5, workers=2))
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_another_process_sees_the_same_pixels(emoji, train) -> None:
    program = (
        "import hashlib\n"
        "from steppe.data import *\n"
        "emoji = open_dataset('emoji')\n"
        "loader = balanced_loader(emoji, make_splits(emoji, 'line').train, batch_per_domain=5, start=6, stop=7,\n"
        "    seed=3, transform=train_transform(48, (.5, .5, .5), (.5, .5, .5)))\n"
        "print(hashlib.sha256(next(iter(loader)).x.numpy().tobytes()).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (batch,) = augmented(emoji, train, 6, 7)
    assert done.stdout.strip() == hashlib.sha256(batch.x.numpy().tobytes()).hexdigest()


def test_randomness_depends_on_seed_step_and_slot_and_not_on_the_pictures() -> None:
    def drawn(sizes: dict[str, int], seed: int) -> torch.Tensor:
        dataset = Numbered(**sizes)
        loader = balanced_loader(
            dataset, dataset.everything(), batch_per_domain=3, start=0, stop=4, seed=seed, transform=draws
        )
        return torch.stack([batch.x.flatten(1) for batch in loader])

    first = drawn({"a": 5, "b": 9}, 0)
    assert torch.equal(first, drawn({"x": 17, "y": 2}, 0))
    assert len({float(value) for value in first.flatten()}) == first.numel()
    assert not torch.isin(first, drawn({"a": 5, "b": 9}, 1)).any()


def state() -> tuple:
    _, keys, place, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return random.getstate(), tuple(keys), place, has_gauss, cached, tuple(torch.get_rng_state().tolist())


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_states_and_threads_are_left_alone(emoji, train, workers: int) -> None:
    before, threads = state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in augmented(emoji, train, 0, 2, workers=workers):
            assert state() == before
            assert torch.get_num_threads() == 2
        for _ in evaluation_loader(
            emoji, "line", np.arange(4), batch_size=2, transform=eval_transform(32, HALF, HALF), workers=workers
        ):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert state() == before


def test_global_random_states_survive_an_error_in_a_transform() -> None:
    def fails(picture: Image.Image) -> torch.Tensor:
        torch.rand(3)
        raise RuntimeError("no")

    dataset = Numbered(a=3)
    before = state()
    loader = balanced_loader(
        dataset, dataset.everything(), batch_per_domain=1, start=0, stop=1, seed=0, transform=fails
    )
    with pytest.raises(RuntimeError, match="no"):
        list(loader)
    assert state() == before


def test_the_users_own_seed_does_not_matter(emoji, train) -> None:
    first = list(augmented(emoji, train, 0, 1))
    torch.manual_seed(99)
    assert same(first[0], next(iter(augmented(emoji, train, 0, 1))))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_through_the_pictures_in_order(emoji, workers: int) -> None:
    indices = np.array([5, 300, 2, 2, 41, 7, 11])
    transform = eval_transform(32, HALF, HALF)
    loader = evaluation_loader(emoji, "noto", indices, batch_size=3, transform=transform, workers=workers)
    batches = list(loader)
    assert [len(y) for _, y in batches] == [3, 3, 1]
    assert len(loader) == 3
    assert torch.cat([y for _, y in batches]).tolist() == emoji.labels("noto")[indices].tolist()
    expected = torch.stack([transform(emoji.image("noto", int(index))) for index in indices])
    assert torch.equal(torch.cat([x for x, _ in batches]), expected)
    assert len(list(loader)) == 3  # it can be gone through again


def wait_for_no_children() -> None:
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("ending", ["abandoned", "exhausted", "error"])
def test_workers_end_with_the_iteration(emoji, train, ending: str) -> None:
    iterator = iter(augmented(emoji, train, 0, 50 if ending != "exhausted" else 2, workers=2))
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    if ending == "exhausted":
        list(iterator)
    elif ending == "error":
        with pytest.raises(ZeroDivisionError):
            iterator.throw(ZeroDivisionError)
    else:
        iterator.close()
    del iterator
    gc.collect()
    wait_for_no_children()


def test_a_program_that_breaks_off_ends_quietly() -> None:
    program = (
        "from steppe.data import *\n"
        "if __name__ == '__main__':\n"
        "    emoji = open_dataset('emoji')\n"
        "    loader = balanced_loader(emoji, make_splits(emoji, 'line').train, batch_per_domain=2, start=0, stop=500,\n"
        "        seed=0, transform=eval_transform(32, (.5, .5, .5), (.5, .5, .5)), workers=2)\n"
        "    batches = iter(loader)\n"
        "    print(len(next(batches).y))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_went_bad_stops_with_a_plain_message(workers: int) -> None:
    dataset = Numbered(a=3)
    loader = balanced_loader(
        dataset,
        {"a": np.array([0, 1])},
        batch_per_domain=2,
        start=0,
        stop=4,
        seed=0,
        transform=as_tensor,
        workers=workers,
    )
    dataset.sizes = {"a": 1}
    with pytest.raises(SteppeError) as caught:
        list(loader)
    assert str(caught.value) == "cannot read the picture a/1"


def test_datasets_travel_to_spawned_workers(emoji, train) -> None:
    """What a platform that does not fork sends to a worker: the sheets' pixels are not in it."""
    import pickle

    emoji.image("noto", 0)
    sent = pickle.dumps((emoji, train_transform(48, HALF, HALF)))
    assert len(sent) < 200_000
    received, _ = pickle.loads(sent)
    assert np.array_equal(np.asarray(received.image("noto", 5)), np.asarray(emoji.image("noto", 5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_per_domain": 0}, "at least one picture of every domain"),
        ({"start": -1}, "got -1 to 2"),
        ({"start": 3}, "got 3 to 2"),
        ({"workers": -1}, "workers cannot be negative"),
        ({"train": {}}, "no source domain"),
        ({"train": {"a": np.array([], dtype=int)}}, "domain 'a' has no training pictures"),
        ({"train": {"A": np.arange(2)}}, "did you mean 'a'"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    arguments = {"train": {"a": np.arange(3)}, "batch_per_domain": 2, "start": 0, "stop": 2, "workers": 0} | change
    dataset = Numbered(a=3)
    with pytest.raises(SteppeError, match=message):
        balanced_loader(dataset, arguments.pop("train"), seed=0, transform=as_tensor, **arguments)


def test_bad_evaluation_arguments() -> None:
    dataset = Numbered(a=3)
    with pytest.raises(SteppeError, match="batch size must be at least 1"):
        evaluation_loader(dataset, "a", np.arange(3), batch_size=0, transform=as_tensor)
    with pytest.raises(SteppeError, match="unknown domain 'b' of 'numbered'"):
        evaluation_loader(dataset, "b", np.arange(3), batch_size=1, transform=as_tensor)


def test_nothing_to_do_is_no_batch() -> None:
    dataset = Numbered(a=3)
    for workers in (0, 2):
        arguments = {"seed": 0, "transform": as_tensor, "workers": workers}
        loader = balanced_loader(dataset, dataset.everything(), batch_per_domain=1, start=4, stop=4, **arguments)
        assert list(loader) == []
        empty = np.array([], dtype=np.int64)
        assert list(evaluation_loader(dataset, "a", empty, batch_size=2, transform=as_tensor, workers=workers)) == []
