"""The arithmetic of the divergences, row by row, with the digits kept where two predictions are nearly the same.

That is where a trust region works: a step at a small learning rate moves the logits by 1e-3 or less, a divergence is of
the order of the square of that, and of the textbook's formulas in float32 nothing is left but rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PIECE = 2**22
"""How many logits are compared at a time. The intermediate results for all tokens times a vocabulary would take several
times the memory of the logits; those of a piece stay in the caches."""


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(p ‖ q) = −Σ p Δ of each row, with p = softmax(first), q = softmax(second), Δ = log q − log p.

    −Σ p Δ is a small difference of large terms: near p = q a rounding error in a normaliser of log p or log q shifts
    every Δ, and so the sum, by as much, while KL itself is of the order of Δ². Σ p (e^Δ − 1) = Σ q − Σ p, which is 0
    but for that same error, takes it out to second order.
    """
    log_p, log_q = _log_probabilities(first, second)
    p, change = log_p.exp(), log_q - log_p
    return (_defect(p, change) - (p * change).sum(-1)).clamp_min(0)


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(p ‖ q) + KL(q ‖ p) = Σ (q − p) Δ of each row: no term is negative, and an error in a normaliser drops out."""
    log_p, log_q = _log_probabilities(first, second)
    terms = (log_q.exp() - log_p.exp()) * (log_q - log_p)
    return terms.sum(-1).clamp_min(0)  # as computed, exp need not rise with every last digit of its argument


def renyi(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """log(Σ p^α q^(1−α)) / (α − 1) of each row: by logsumexp, which serves every Δ and gives the gradient, with the
    value of a form like :func:`kl`'s where the divergence is small.
    """
    log_p, log_q = _log_probabilities(first, second)
    change = log_q - log_p
    log_sum = torch.logsumexp(log_p + (1 - alpha) * change, -1)
    with torch.no_grad():
        p = log_p.exp()
        excess = (p * torch.expm1((1 - alpha) * change)).sum(-1) - (1 - alpha) * _defect(p, change)
        correction = torch.where(excess.abs() < 0.5, torch.log1p(excess) - log_sum, 0)
    return ((log_sum + correction) / (alpha - 1)).clamp_min(0)


def _log_probabilities(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Finite ones: a class that a logit of −∞ excludes on both sides is to have a Δ of 0, and not ∞ − ∞."""
    if first.shape[-1] == 1:
        raise ValueError("a softmax over one class is always 1: give logits of two classes, [0, z] for a single z")
    least = torch.finfo(first.dtype).min
    clamp = torch.clamp_min if torch.is_grad_enabled() else torch.clamp_min_  # autograd needs what log_softmax gave
    return clamp(torch.log_softmax(first, -1), least), clamp(torch.log_softmax(second, -1), least)


def _defect(p: Tensor, change: Tensor) -> Tensor:
    """Σ p (e^Δ − 1) of each row: Σ q − Σ p as computed. In exact arithmetic it is 0, so it has no gradient.

    What is larger than a rounding error comes of p that underflows or e^Δ that overflows, and is no correction.
    """
    with torch.no_grad():
        defect = (p * torch.expm1(change)).sum(-1)
        return torch.where(defect.abs() < 100 * torch.finfo(defect.dtype).eps, defect, 0)


def by_rows(value: Callable[[Tensor, Tensor], Tensor], current: Tensor, reference: Tensor) -> Tensor:
    """``value`` of rows ``[R, C]`` and ``[R, C]``, widened, for all rows of logits ``[..., C]``."""
    dtype = common_dtype(current, reference)
    classes = current.shape[-1]
    x, y = current.reshape(-1, classes), reference.reshape(-1, classes)
    step = max(1, x.shape[0] if torch.compiler.is_compiling() else PIECE // max(1, classes))
    pieces = zip(torch.split(x, step), torch.split(y, step), strict=True)
    values = [value(a.to(dtype), b.to(dtype)) for a, b in pieces]
    return torch.cat(values).reshape(current.shape[:-1])


def common_dtype(current: Tensor, reference: Tensor) -> torch.dtype:
    """The dtype to compute in: float32 or better.

    Raises:
        ValueError: the logits do not have the same shape ``[..., C]``.
    """
    if current.shape != reference.shape or current.ndim == 0:
        shapes = f"{list(current.shape)} and {list(reference.shape)}"
        raise ValueError(f"current and reference logits must have the same shape [..., C], got {shapes}")
    return torch.promote_types(torch.promote_types(current.dtype, reference.dtype), torch.float32)


def shares(weight: Tensor, shape: Any, dtype: torch.dtype) -> Tensor:
    """weight / Σ weight; zeros where that is 0/0.

    Raises:
        ValueError: the weight does not have that shape.
    """
    if weight.shape != shape:
        raise ValueError(f"the weight must have one number a row, shape {list(shape)}, got {list(weight.shape)}")
    weight = weight.to(dtype)
    total = weight.sum()
    return weight / torch.where(total == 0, 1, total)
