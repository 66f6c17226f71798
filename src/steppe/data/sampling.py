"""Which pictures make a batch: pure functions of seed and step, so that nothing has to be remembered or replayed."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from steppe.data.domains import Indices
from steppe.errors import SteppeError


def derived_seed(*parts: object) -> int:
    """64 bits that depend on every part and look unrelated for neighbouring ones."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Cycle:
    """An endless stream of ``indices``, one reshuffled epoch after the other, that can be read at any place.

    Place p is in epoch p // n, whose order is a permutation seeded by (seed, name, epoch).
    """

    def __init__(self, indices: Indices, seed: int, name: str) -> None:
        if not len(indices):
            raise SteppeError(f"domain {name!r} has no training pictures")
        self._indices = np.asarray(indices, dtype=np.int64)
        self._seed = seed
        self._name = name
        self._orders: dict[int, Indices] = {}

    def read(self, start: int, count: int) -> Indices:
        """The indices at places ``start`` to ``start + count - 1``."""
        n = len(self._indices)
        epochs = range(start // n, (start + count - 1) // n + 1)
        self._orders = {epoch: self._order(epoch) for epoch in epochs}
        stream = np.concatenate(list(self._orders.values()))
        offset = start - epochs.start * n
        return stream[offset : offset + count]

    def _order(self, epoch: int) -> Indices:
        order = self._orders.get(epoch)
        if order is None:
            # RandomState: NumPy has frozen its stream, so the order of a run outlives upgrades of NumPy.
            seed = derived_seed("order", self._seed, self._name, epoch) % 2**32
            order = self._indices[np.random.RandomState(seed).permutation(len(self._indices))]
        return order


class BalancedOrder:
    """step → the pictures of its batch: the same number from every domain, domain after domain."""

    def __init__(self, train: Mapping[str, Indices], per_domain: int, seed: int) -> None:
        if not train:
            raise SteppeError("there is no source domain to train on")
        if per_domain < 1:
            raise SteppeError(f"a batch needs at least one picture of every domain; got {per_domain}")
        self.per_domain = per_domain
        self.seed = seed
        self._cycles = {domain: Cycle(indices, seed, domain) for domain, indices in train.items()}

    def pictures(self, step: int) -> list[tuple[str, int]]:
        """(domain, index) of every slot of the batch of ``step``."""
        return [(domain, index) for domain, indices in self.indices(step).items() for index in indices.tolist()]

    def indices(self, step: int) -> dict[str, Indices]:
        """The same, domain by domain: its indices in the order of the slots."""
        start = step * self.per_domain
        return {domain: cycle.read(start, self.per_domain) for domain, cycle in self._cycles.items()}


class SlotRandomness:
    """Seeds Python's, NumPy's and torch's global generators (the CPU's) for one slot of one step."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def begin(self, step: int, slot: int) -> None:
        seed = derived_seed("pixels", self._seed, step, slot)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - a user's transform may draw from the global generator
        torch.default_generator.manual_seed(seed % 2**63)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in one thread of this process, as it does in a worker, and afterwards in as many as before.

    The operations on one picture are too small to share. Shared they gain nothing on an idle machine, and where another
    process wants the same cores, each of them waits for a thread that is not running: ten times slower and more.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def undisturbed_randomness() -> Iterator[None]:
    """On exit Python's, NumPy's and torch's global generators (the CPU's) are where they were on entry."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
