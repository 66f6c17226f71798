"""Which samples of a batch a pass sees: all, the fraction to climb on, or one of m parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from steppe.objectives import check_domain


def stratified_order(domain: Tensor) -> Tensor:
    """An order of the samples in which every stretch has the domains in about their proportions.

    Sorted by r/n, where r counts the samples of the same domain before a sample and n those of its domain in all: the
    first sample of each domain comes first. Nothing is drawn, and nothing waits for the device.

    Args:
        domain: integers of shape ``[N]``.

    Returns:
        A permutation of 0…N−1.
    """
    same = domain[:, None] == domain[None, :]
    before = same.tril(-1).sum(1)
    return torch.argsort(before / same.sum(1), stable=True)


def rows(batch: Any, choose: Callable[[Tensor], Tensor]) -> Any:
    """``choose`` of every tensor in nested containers (tuples, lists, dicts); what is no tensor stays.

    Other mappings, such as what a tokenizer of transformers gives, become dicts.
    """

    def chosen(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return rows(dict(leaf), choose)
        return choose(leaf) if isinstance(leaf, Tensor) else leaf

    return tree_map(chosen, batch)


def sample_count(batch: Any) -> int:
    """The number of samples: the length of the first tensor in nested containers.

    Raises:
        ValueError: there is no tensor, or they differ in length.
    """
    lengths: list[int] = []

    def noted(tensor: Tensor) -> Tensor:
        lengths.append(len(tensor))
        return tensor

    rows(batch, noted)
    if not lengths:
        raise ValueError("ascent_batch() needs at least one tensor")
    if any(length != lengths[0] for length in lengths):
        raise ValueError(f"the tensors of a batch must have one length, got {lengths}")
    return lengths[0]


class Share:
    """What part of a batch the passes of a step see.

    Args:
        fraction: of the samples to climb on, in (0, 1].
        parts: m, the number of parts that each have a climb of their own.

    Raises:
        ValueError: out of range, ``parts`` is no whole number, or both at once.
    """

    def __init__(self, fraction: float, parts: int) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"ascent_fraction must be larger than 0 and at most 1, got {fraction}")
        if parts < 1 or parts != int(parts):
            raise ValueError(f"m must be a whole number of at least 1, got {parts}")
        if fraction < 1 and parts > 1:
            raise ValueError("ascent_fraction and m exclude each other: each part is climbed on in full")
        self.fraction = fraction
        self.parts = int(parts)

    @property
    def divides(self) -> bool:
        """Whether some pass does not see the whole batch."""
        return self.fraction < 1 or self.parts > 1

    def of(self, batch: tuple[Any, ...], domain: Tensor | None, pass_name: str | None, part: int) -> tuple[Any, int]:
        """The part of ``batch`` that the pass sees, and what it counts: its number of samples over all, as ``(…, n)``.

        Args:
            batch: whatever the caller has; every tensor has the samples first.
            domain: the domain of each sample, to stratify by; ``None`` takes contiguous parts.
            pass_name: the pass under way, or ``None``.
            part: which of the m parts.
        """
        n = sample_count(batch)
        if domain is not None:
            check_domain(domain)
        climbs = pass_name in ("survey", "measure", "climb")
        if self.parts > 1 and pass_name is not None:
            if n < self.parts:
                raise ValueError(f"a batch of {n} cannot be divided into m = {self.parts} parts")
            base, more = divmod(n, self.parts)  # as torch.tensor_split
            begin = part * base + min(part, more)
            end = begin + base + (part < more)
        elif self.fraction < 1 and climbs:
            begin, end = 0, max(1, round(self.fraction * n))
        else:
            return batch, n
        if domain is None:
            return rows(batch, lambda t: t[begin:end]), end - begin
        chosen = stratified_order(domain)[begin:end]
        return rows(batch, lambda t: t.index_select(0, chosen.to(t.device))), end - begin
