"""The slots of a training batch: whose picture each is, with which label, and by which random numbers it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steppe.data.domains import DomainDataset
from steppe.data.sampling import BalancedOrder, SlotRandomness

Slot = tuple[int, str, int]
"""Its number in the batch, the domain of its picture, and the picture's index there."""


class Part(NamedTuple):
    """Whose pictures of a batch are made where several processes train together: slots rank, rank + size, ..."""

    rank: int = 0
    size: int = 1


class Slots:
    """The slots of each step's batch, domain by domain.

    Args:
        dataset: has the labels.
        order: which pictures make a batch.
        domains: the source domains, in the order of a batch's domain index.
        part: which slots are made here.
    """

    def __init__(self, dataset: DomainDataset, order: BalancedOrder, domains: Sequence[str], part: Part) -> None:
        self._order = order
        self._part = part
        self._labels = {domain: dataset.labels(domain) for domain in domains}
        self._numbers = torch.arange(len(domains)).repeat_interleave(order.per_domain)
        self._randomness = SlotRandomness(order.seed)

    def own(self, step: int) -> list[Slot]:
        """The slots that are made here, in their order."""
        slots = [(slot, domain, index) for slot, (domain, index) in enumerate(self._order.pictures(step))]
        return slots[self._part.rank :: self._part.size]

    def labels(self, step: int) -> tuple[Tensor, Tensor]:
        """Labels and domains of the whole batch, int64 [B] each."""
        found = [self._labels[domain][index] for domain, index in self._order.pictures(step)]
        return torch.tensor(found), self._numbers.clone()

    def begin(self, step: int, slot: int) -> None:
        """Seed the global generators for what is drawn for this slot."""
        self._randomness.begin(step, slot)
