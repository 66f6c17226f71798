"""Lists in portions: every number once, of all lists the same, and no portion too large."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steppe.averaging import portions as module
from steppe.averaging.portions import add_pull, approach, portions, pull_back

LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() else t,
    "with gaps": lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t,
    "float32": Tensor.float,
    "bfloat16": Tensor.bfloat16,
}

layouts = st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=3, max_size=3)
lists = st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), layouts), max_size=6)
"""Shapes, and how each of three lists has a tensor of it."""


@pytest.fixture(autouse=True)
def _small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED", 7)


def tensors(shapes: list[tuple[list[int], list[str]]], which: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(which)
    values = [torch.randint(0, 64, shape, generator=generator).double() / 8 for shape, _ in shapes]
    return [LAYOUTS[chosen[which]](value) for value, (_, chosen) in zip(values, shapes, strict=True)]


@given(lists)
def test_every_number_is_in_one_portion_and_at_one_place_of_all_lists(shapes) -> None:
    first, second = tensors(shapes, 0), tensors(shapes, 1)
    with torch.no_grad():
        for number, (some, others) in enumerate(portions(first, second), start=1):
            assert len({t.dtype for t in some}) == len({t.dtype for t in others}) == 1
            assert sum(t.numel() for t in some) <= 7 or len(some) == 1
            for a, b in zip(some, others, strict=True):
                assert a.shape == b.shape
                a.add_(100 * number)
                b.add_(100 * number)
    assert all(t.min() >= 100 for t in first if t.numel())
    for before, a, b in zip(tensors(shapes, 0), first, second, strict=True):
        if a.dtype != torch.bfloat16 and b.dtype != torch.bfloat16:
            assert torch.equal((a / 100).floor(), (b / 100).floor().to(a.dtype))
            assert torch.equal(a - 100 * (a / 100).floor(), before)


@given(lists, st.sampled_from([0.25, 0.75, 1.0]))
def test_what_is_done_to_portions_is_done_to_all(shapes, share: float) -> None:
    """Multiples of 1/64 below 32 are exact in float32; bfloat16 rounds once, at the end."""
    slow, ends, fast = (tensors(shapes, which) for which in range(3))
    slow = [t.float() if t.dtype == torch.bfloat16 else t for t in slow]
    expected = [a.double() + share * (b.double() - a.double()) for a, b in zip(slow, ends, strict=True)]
    pull_back(slow, ends, fast, share)
    for a, c, value in zip(slow, fast, expected, strict=True):
        assert torch.equal(a.double(), value)
        assert torch.equal(c, value.to(c.dtype))
    approach(slow, ends, 1.0)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(slow, ends, strict=True))


@given(lists, st.sampled_from([None, 0.25, 1.0]), st.sampled_from([None, 4.0]))
def test_a_pull_is_added(shapes, share: float | None, scale: float | None) -> None:
    gradients, ends, means = (tensors(shapes, which) for which in range(3))
    means = [t.float() if t.dtype == torch.bfloat16 else t for t in means]
    middles = [m.double() + (share or 0) * (w.double() - m.double()) for w, m in zip(ends, means, strict=True)]
    sums = [
        g.double() + 0.5 * (scale or 1) * (w.double() - m)
        for g, w, m in zip(gradients, ends, middles, strict=True)
    ]  # fmt: skip
    add_pull(gradients, ends, means, 0.5, share=share, scale=None if scale is None else torch.tensor(scale))
    assert all(torch.equal(m.double(), middle) for m, middle in zip(means, middles, strict=True))
    for g, total in zip(gradients, sums, strict=True):
        torch.testing.assert_close(g, total.to(g.dtype), atol=2**-3 if g.dtype == torch.bfloat16 else 0, rtol=2**-7)
