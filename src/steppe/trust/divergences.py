"""How far two sets of predictions on the same inputs are apart: the d of a trust region.

Every divergence here compares current logits with reference logits, both of shape ``[..., C]`` (C classes last), one
row a sample or a token. With p = softmax(reference), q = softmax(current) and Δ = log q − log p, a row:

    KL           KL(p ‖ q) = −Σ p Δ                                (forward; the default)
    ReverseKL    KL(q ‖ p) =  Σ q Δ
    SymmetricKL  KL(p ‖ q) + KL(q ‖ p) = Σ (q − p) Δ               (the sum, not its half)
    Renyi        log(Σ p^α q^(1−α)) / (α − 1)
    L2           ‖current − reference‖₂                            (on logits; the norm, not its square)

and d is the mean over the rows that count. MMD compares the two sets of rows instead. All are computed in float32 or
better, are at least 0, exactly 0 for identical logits, finite for finite ones, and differentiable in both arguments.
Those of probabilities also where a logit of −∞ excludes a class on both sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from steppe.errors import unknown_name
from steppe.trust.rows import by_rows, common_dtype, kl, renyi, shares, symmetric_kl


@runtime_checkable
class Divergence(Protocol):
    """What a trust region measures with. Write your own: an object with these two members, or a subclass of
    :class:`Additive` with a method ``rows``.
    """

    additive: bool
    """Whether d is a weighted mean of one value a row, so that the d of a batch is the mean of the d of its parts,
    each weighted by its Σ weight. Gradient accumulation and data parallelism need to know."""

    def __call__(self, current: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
        """d ≥ 0, a 0-dim tensor in float32 or better.

        Args:
            current: logits of the model, shape ``[..., C]``.
            reference: logits of the reference on the same inputs, same shape.
            weight: how much each row counts, shape ``[...]``: 1 or 0 for a mask, any number ≥ 0 otherwise. Absent,
                all rows count alike. Where the weights sum to 0, d is 0.
        """


class Additive(ABC):
    """A divergence that is the mean of one value a row. Subclass it and write :meth:`rows`."""

    additive = True

    @abstractmethod
    def rows(self, current: Tensor, reference: Tensor) -> Tensor:
        """The divergence of each row, ``[...]``, from logits ``[..., C]``."""

    def __call__(self, current: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
        """Σ weight · rows / Σ weight; see :class:`Divergence`."""
        rows = self.rows(current, reference)
        if weight is None:
            return rows.sum() / max(rows.numel(), 1)
        share = shares(weight, rows.shape, rows.dtype)
        return (share * rows).sum()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class KL(Additive):
    """Forward KL(p ‖ q) = −Σ p Δ, from the reference p to the current q: TRAM's default (Sherborne et al. 2024).

    The release divides by the number of classes and again by the batch, and counts padding; here d is the mean over
    the rows that count, as the paper has it.

    Raises:
        ValueError: the shapes differ, or the rows have one class (a softmax over one class is always 1).
    """

    def rows(self, current: Tensor, reference: Tensor) -> Tensor:
        return by_rows(lambda c, r: kl(r, c), current, reference)


class ReverseKL(Additive):
    """Reverse KL(q ‖ p) = Σ q Δ, from the current q to the reference p. Raises as :class:`KL`."""

    def rows(self, current: Tensor, reference: Tensor) -> Tensor:
        return by_rows(kl, current, reference)


class SymmetricKL(Additive):
    """KL(p ‖ q) + KL(q ‖ p) = Σ (q − p) Δ: the sum of both directions, as in R3F (Aghajanyan et al. 2021) and in
    TRAM's release; not the half of it. Raises as :class:`KL`.
    """

    def rows(self, current: Tensor, reference: Tensor) -> Tensor:
        return by_rows(symmetric_kl, current, reference)


class Renyi(Additive):
    """Rényi's divergence of order α, log(Σ p^α q^(1−α)) / (α − 1), from the reference p to the current q.

    TRAM's paper suggests it without an order, and its release does not have it. The default α = ½ is −2 log Σ √(p q):
    symmetric in p and q, and mild where q is small. α → 1 is :class:`KL`; larger orders weigh more what the reference
    holds likely and the current model does not. For small changes it is α times KL.

    Args:
        alpha: α > 0, other than 1.

    Raises:
        ValueError: α is not positive and finite, or is 1; on logits, as :class:`KL`.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {alpha}")
        if alpha == 1:
            raise ValueError("the divergence of order 1 is KL(): use that")
        self.alpha = alpha

    def rows(self, current: Tensor, reference: Tensor) -> Tensor:
        return by_rows(lambda c, r: renyi(r, c, self.alpha), current, reference)

    def __repr__(self) -> str:
        return f"Renyi(alpha={self.alpha})"


class L2(Additive):
    """‖current − reference‖₂ on the logits, a row: the norm and not its square, as in TRAM's release.

    So it also sees what a softmax does not: a constant added to a row. Its gradient at identical rows, where the norm
    has none, is 0. (The release's own function lacks ``self`` and cannot be called, and divides by the batch twice.)

    Raises:
        ValueError: the shapes differ.
    """

    def rows(self, current: Tensor, reference: Tensor) -> Tensor:
        return by_rows(lambda c, r: torch.linalg.vector_norm(c - r, dim=-1), current, reference)


class MMD:
    """Biased MMD² between the set of current rows and the set of reference rows (Gretton et al. 2012).

        Σ_ij a_i a_j [k(c_i, c_j) + k(r_i, r_j) − 2 k(c_i, r_j)],   a = weight / Σ weight
        k(x, y) = Σ_b (b² + ‖x − y‖²)^(−½)

    with the logits as x and y and the inverse multiquadratic kernel of TRAM's release, which divides by the batch once
    more. Not additive: it compares sets, so which logits belong to which input does not matter, and the MMD of a batch
    is not a mean over its parts. It takes N² C operations and N² memory for N rows: meant for samples, not for tokens
    times a vocabulary. It is at most 2 Σ 1/b, 37.6 with the default scales.

    Args:
        scales: the b, positive.

    Raises:
        ValueError: no scale, or one that is not positive and finite; on logits, the shapes differ.
    """

    additive = False

    def __init__(self, scales: Sequence[float] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)) -> None:
        if not scales or not all(0 < b < float("inf") for b in scales):
            raise ValueError(f"scales must be positive and finite, and at least one, got {scales}")
        self.scales = tuple(scales)

    def __call__(self, current: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
        """See :class:`Divergence`."""
        dtype = common_dtype(current, reference)
        x, y = (logits.reshape(-1, logits.shape[-1]).to(dtype) for logits in (current, reference))
        with_reference = self._kernel(x, y)
        gap = (self._kernel(x, x) - with_reference) + (self._kernel(y, y) - with_reference)
        weight = torch.ones(current.shape[:-1], device=x.device) if weight is None else weight
        share = shares(weight, current.shape[:-1], dtype).flatten()
        return (share[:, None] * share[None, :] * gap).sum().clamp_min(0)

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        # Distances from differences: by inner products (‖x‖² + ‖y‖² − 2⟨x, y⟩) they would not be 0 between identical
        # rows, and lose what is small beside the logits. Squared again, the distance has a gradient at 0.
        square = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
        return torch.stack([torch.rsqrt(square + b * b) for b in self.scales]).sum(0)

    def __repr__(self) -> str:
        return f"MMD(scales={self.scales})"


NAMES: dict[str, Callable[[], Divergence]] = {
    "kl": KL,
    "reverse": ReverseKL,
    "symmetric": SymmetricKL,
    "mmd": MMD,
    "l2": L2,
    "renyi": Renyi,
}
"""The words for the divergences, each with its defaults."""


def divergence(which: str | Divergence) -> Divergence:
    """The divergence of that name (a key of :data:`NAMES`), or the given object itself.

    Raises:
        SteppeError: no divergence has that name; the message says which are near.
        TypeError: the object lacks a member of :class:`Divergence`, or is a class.
    """
    if isinstance(which, str):
        if which not in NAMES:
            raise unknown_name("divergence", which, NAMES)
        return NAMES[which]()
    if isinstance(which, type):
        raise TypeError(f"{which.__name__} cannot be the divergence: it is a class, not an instance: call it")
    if not callable(which) or not hasattr(which, "additive"):
        fault = "lacks additive (True where d is a mean of one value a row)" if callable(which) else "cannot be called"
        raise TypeError(f"{type(which).__name__} cannot be the divergence: it {fault}")
    return which


def tokens_that_count(
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    ignore_index: int = -100,
    shift: bool = False,
) -> Tensor | None:
    """The weight, 1 or 0, of each row of language logits ``[B, T, C]``: the ``weight`` of a :class:`Divergence`.

    A token counts where its label is not ``ignore_index`` and its attention is not 0, as far as either is given.

    Args:
        labels: labels as the loss gets them, ``[B, T]``.
        attention_mask: ``[B, T]``, 0 on padding.
        ignore_index: the label that does not count.
        shift: for causal language models, whose logits at t predict token t + 1 while labels and attention mask are
            those of the input: row t counts where token t + 1 does, and the last row never.

    Returns:
        float32 of the shape of the arguments; ``None``, which is "all rows count", where neither is given.

    Raises:
        ValueError: the shapes differ, or the attention mask says more than which tokens are padding.
    """
    if attention_mask is not None and attention_mask.ndim > 2:
        raise ValueError(f"the attention mask must have shape [B, T], got {list(attention_mask.shape)}")
    if labels is not None and attention_mask is not None and labels.shape != attention_mask.shape:
        shapes = f"{list(labels.shape)} and {list(attention_mask.shape)}"
        raise ValueError(f"labels and attention mask must have the same shape, got {shapes}")
    counts = None if attention_mask is None else attention_mask != 0
    if labels is not None:
        counts = labels != ignore_index if counts is None else counts & (labels != ignore_index)
    if counts is None:
        return None
    weight = counts.to(torch.float32)
    return functional.pad(weight[..., 1:], (0, 1)) if shift else weight
