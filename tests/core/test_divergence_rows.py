"""Which rows a divergence counts, how it goes through them, and which tokens of a text they are."""

from __future__ import annotations

import pytest
import torch
from divergence_cases import ADDITIVE, ALL, SEEDS, SHAPES, logits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from steppe.trust import KL, MMD, Additive, Divergence, Renyi, rows, tokens_that_count


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=SEEDS, which=st.sampled_from(ALL))
def test_a_mask_equals_leaving_the_rows_out(shape: tuple[int, ...], seed: int, which: Divergence) -> None:
    current, reference = logits(seed, shape), logits(seed + 1, shape)
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(seed)) < 0.6
    masked = which(current, reference, mask)
    if mask.any():
        torch.testing.assert_close(masked, which(current[mask], reference[mask]))
        torch.testing.assert_close(masked, which(current, reference, mask.float()), rtol=0, atol=0)
        torch.testing.assert_close(masked, which(current, reference, 3.0 * mask))  # only relative weights matter
    else:
        assert masked.item() == 0
    untouched = torch.where(mask[..., None], current, 123.0)
    torch.testing.assert_close(which(untouched, reference, mask), masked)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=SEEDS, which=st.sampled_from(ADDITIVE))
def test_additive_means_that_parts_add_up(shape: tuple[int, ...], seed: int, which: Additive) -> None:
    current, reference = logits(seed, shape), logits(seed + 1, shape)
    weight = torch.rand(shape[:-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    parts = [which(c, r, w) * w.sum() for c, r, w in zip(current, reference, weight, strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum() / weight.sum(), which(current, reference, weight))
    assert which.additive


def test_mmd_is_not_additive() -> None:
    current, reference = logits(0, (6, 3)), logits(1, (6, 3))
    halves = (MMD()(current[:3], reference[:3]) + MMD()(current[3:], reference[3:])) / 2
    assert not MMD().additive
    assert abs(halves - MMD()(current, reference)) > 1e-2


@pytest.mark.parametrize("which", ALL, ids=repr)
def test_no_rows_are_no_divergence(which: Divergence) -> None:
    assert which(torch.zeros(0, 5), torch.zeros(0, 5)).item() == 0
    assert which(torch.ones(3, 5), torch.eye(5)[:3], torch.zeros(3)).item() == 0


@pytest.mark.parametrize("which", ADDITIVE, ids=repr)
def test_the_size_of_the_pieces_changes_nothing(which: Additive, monkeypatch: pytest.MonkeyPatch) -> None:
    current, reference = logits(0, (5, 3, 7)).requires_grad_(), logits(1, (5, 3, 7))
    whole = which(current, reference)
    (gradient,) = torch.autograd.grad(whole, current)
    monkeypatch.setattr(rows, "PIECE", 30)  # four rows at a time
    pieces = which(current, reference)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces, current)[0], gradient)


class _Operations(TorchDispatchMode):
    """Which operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("which", ALL, ids=repr)
def test_no_operation_brings_a_number_to_the_host(which: Divergence) -> None:
    current, labels = logits(0, (2, 4, 5)).requires_grad_(), torch.tensor([[1, 2, -100, 3], [0, 1, 2, -100]])
    with _Operations() as seen:
        weight = tokens_that_count(labels, torch.ones(2, 4), shift=True)
        which(current, logits(1, (2, 4, 5)), weight).backward()
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique")
    assert not [name for name in seen.names if any(wait in name for wait in waits)]
    assert "aten.sum.default" in seen.names


@pytest.mark.parametrize("which", [KL(), Renyi(), MMD()], ids=repr)
def test_it_compiles_into_one_graph(which: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    current, reference, weight = logits(0, (3, 4)), logits(1, (3, 4)), torch.tensor([1.0, 0.0, 1.0])
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(rows, "PIECE", 4)  # as small as can be: the compiler is to see all rows at once
    compiled = torch.compile(which, fullgraph=True, backend=keep)
    torch.testing.assert_close(compiled(current, reference, weight), which(current, reference, weight))
    (graph,) = graphs
    assert sum("log_softmax" in str(node.target) for node in graph.graph.nodes) == (2 if which.additive else 0)


@pytest.mark.parametrize("which", ALL, ids=repr)
def test_shapes_are_known_without_the_numbers(which: Divergence) -> None:
    """On the meta device there are no numbers: whatever depends on one raises."""
    current = torch.empty(2, 3, 5, device="meta")
    assert which(current, current, torch.empty(2, 3, device="meta")).shape == ()


# --- tokens ---


def test_tokens_that_count() -> None:
    labels = torch.tensor([[5, -100, 7, 8], [-100, 2, -100, 4]])
    attention = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert tokens_that_count() is None
    assert tokens_that_count(shift=True) is None
    assert tokens_that_count(labels).tolist() == [[1, 0, 1, 1], [0, 1, 0, 1]]
    assert tokens_that_count(labels, ignore_index=8).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert tokens_that_count(attention_mask=attention).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    packed = torch.tensor([[1, 2, 2, 0]])  # the number of the document in a packed sequence
    assert tokens_that_count(attention_mask=packed).tolist() == [[1, 1, 1, 0]]
    assert tokens_that_count(labels, attention).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert tokens_that_count(labels, attention.bool(), shift=True).tolist() == [[0, 1, 0, 0], [1, 0, 1, 0]]
    assert tokens_that_count(attention_mask=attention.float(), shift=True).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert tokens_that_count(labels, attention, shift=True).dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(1, 6), seed=SEEDS)
def test_shifted_weights_are_those_of_the_shifted_loss(batch: int, length: int, seed: int) -> None:
    """The rows that count are the rows whose label a causal loss reads: logits without the last, labels without the
    first."""
    current, reference = logits(seed, (batch, length, 4)), logits(seed + 1, (batch, length, 4))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (batch, length), generator=generator)
    labels[torch.rand(batch, length, generator=generator) < 0.3] = -100
    d = KL()(current, reference, tokens_that_count(labels, shift=True))
    read = labels[:, 1:] != -100
    expected = KL()(current[:, :-1][read], reference[:, :-1][read])
    torch.testing.assert_close(d, expected)


def test_masks_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same shape, got \[2, 4\] and \[2, 3\]"):
        tokens_that_count(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\[B, T\], got \[2, 1, 3, 3\]"):
        tokens_that_count(attention_mask=torch.zeros(2, 1, 3, 3))
