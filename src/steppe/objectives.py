"""What is climbed: the objective whose gradient points the way from w to w + ε.

An objective never builds a graph of its own. It answers with one detached coefficient a sample, so that
the gradient of ``(coefficients * losses).sum()`` is the gradient of the objective; the engine adds the value.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from steppe.replicas import Replicas


@runtime_checkable
class Objective(Protocol):
    """The first of the four parts. Write your own by giving a class this method.

    It may also have ``plain: bool`` (default false): whether the objective is the mean loss L itself, so that one
    gradient at w serves climb and descent; and ``joint_coefficients``, see :class:`DomainVariance`, without which it
    cannot be climbed on the joined batch of several ranks.
    """

    def coefficients(self, losses: Tensor, domains: Tensor | None) -> Tensor:
        """The detached weight of each sample in the climb.

        Args:
            losses: detached losses, one a sample, shape ``[N]``, in float32 or better.
            domains: the domain of each sample, integers of shape ``[N]``, or ``None`` where the caller gave none.

        Returns:
            Coefficients c of shape ``[N]`` such that Σ c_s ∇ℓ_s is the gradient to climb.
        """


class Mean:
    """L(w), the mean loss of the batch: SAM's objective (Foret et al. 2021)."""

    plain = True

    def coefficients(self, losses: Tensor, domains: Tensor | None) -> Tensor:
        return torch.full_like(losses, 1.0 / losses.numel())

    def __repr__(self) -> str:
        return "Mean()"


class DomainVariance:
    r"""L(w) − λ Var{L_i}: DISAM's objective (Zhang et al., ICLR 2024, Eq. 7 and 8).

    With the domains i = 1…M present in the batch, n_i samples each, α_i = n_i / N, L_i the mean loss of domain i
    and L̄ = (1/M) Σ L_i,

        Var{L_i} = (1/M) Σ (L_i − L̄)²          a = Σ_i β_i ∇L_i,   β_i = α_i − (2λ/M)(L_i − L̄)

    so the climb re-weights the domains: it rises more on those whose loss is already low, and the domains converge
    at one pace. Per sample the coefficient is β_i / n_i. One domain in the batch gives SAM. β_i may be negative
    for large λ: that is the method.

    It is computed without a loop over domains and in static shapes (no host–device synchronisation): with
    S = (d[:, None] == d[None, :]), n = S·1, l = S·losses / n, M = Σ 1/n and L̄ = (Σ l/n) / M, the coefficient
    is 1/N − (2λ/M)(l − L̄)/n. S has N² entries: N is the number of samples, not of tokens or pixels.

    Args:
        lam: λ ≥ 0, the weight of the variance. The paper uses 0.1 and is stable in [0.1, 0.7].
        num_domains: domains are numbered 0…num_domains − 1, the same on all ranks. Only for several ranks that climb
            together; without it they agree on the largest number in each step, for which the host waits.

    Raises:
        ValueError: λ is negative, infinite or not a number, ``num_domains`` less than 1.
    """

    def __init__(self, lam: float = 0.1, num_domains: int | None = None) -> None:
        if not 0 <= lam < float("inf"):
            raise ValueError(f"lam must be at least 0 and finite, got {lam}")
        if num_domains is not None and num_domains < 1:
            raise ValueError(f"num_domains must be at least 1, got {num_domains}")
        self.lam = lam
        self.num_domains = num_domains

    @property
    def plain(self) -> bool:
        return self.lam == 0

    def coefficients(self, losses: Tensor, domains: Tensor | None) -> Tensor:
        if domains is None:
            raise ValueError("DomainVariance needs the domain of each sample: call optimizer.objective(losses, domain)")
        same = (domains[:, None] == domains[None, :]).to(losses.dtype)
        count = same.sum(1)
        domain_loss = (same * losses).sum(1) / count  # autocast would take a matrix product in half precision
        present = (1 / count).sum()
        mean_loss = (domain_loss / count).sum() / present
        return 1 / losses.numel() - (2 * self.lam / present) * (domain_loss - mean_loss) / count

    def joint_coefficients(self, losses: Tensor, domains: Tensor | None, ranks: Replicas) -> Tensor:
        """The same for the joined batch of several ranks, of which this one holds ``losses``.

        The ranks exchange the sums and counts of the domains, 2·``num_domains`` numbers. Every rank must call.

        Raises:
            ValueError: there are no domains, or they are not numbered from 0 (on an accelerator the device says so).
        """
        if domains is None:
            raise ValueError("DomainVariance needs the domain of each sample: call optimizer.objective(losses, domain)")
        domains = domains.long()
        number = self.num_domains or int(ranks.largest(domains.max() + 1))
        if domains.device.type == "cpu" and not bool(((domains >= 0) & (domains < number)).all()):
            found = f"{int(domains.min())} to {int(domains.max())}"
            raise ValueError(f"domains must be numbered 0 to {number - 1}, got {found}")
        table = torch.zeros(2, number, dtype=losses.dtype, device=losses.device)
        table.index_add_(1, domains, torch.stack([losses, torch.ones_like(losses)]))
        sums, counts = ranks.sum(table)
        here = (counts > 0).to(losses.dtype)
        count = counts.clamp_min(1)
        domain_loss = sums / count
        mean_loss = (domain_loss * here).sum() / here.sum()
        per_sample: Tensor = 1 / counts.sum() - (2 * self.lam / here.sum()) * (domain_loss - mean_loss) / count
        return per_sample[domains]

    def __repr__(self) -> str:
        return f"DomainVariance(lam={self.lam})"


def domain_means(losses: Tensor, domains: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss of each domain present in a batch, for logging and analysis.

    Args:
        losses: one loss a sample, shape ``[N]``. Gradients flow through.
        domains: integers of shape ``[N]``.

    Returns:
        ``(means, counts, ids)``, each of shape ``[M]``: ``means[i]`` is L_i of domain ``ids[i]``, which has
        ``counts[i]`` samples; ``ids`` ascend.

    Note:
        M depends on the data, so on an accelerator this synchronises with the host; the training step itself
        (:class:`DomainVariance`) does not use it.

    Raises:
        TypeError: ``domains`` are no tensor.
        ValueError: the shapes differ or ``domains`` are not integers.
    """
    check_batch(losses, domains)
    ids, inverse, counts = torch.unique(domains, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(ids), dtype=losses.dtype, device=losses.device).index_add(0, inverse, losses)
    return sums / counts, counts, ids


def check_batch(losses: Tensor, domains: Tensor | None) -> None:
    """Raise ``ValueError`` unless there is one loss and one integer domain a sample, ``TypeError`` for no tensor."""
    if domains is None:
        return
    check_domain(domains)
    if losses.dim() != 1 or domains.shape != losses.shape:
        raise ValueError(
            f"with domains, losses must be one a sample: got losses of shape {tuple(losses.shape)} and domains of "
            f"shape {tuple(domains.shape)}; use reduction='none' and average over tokens or pixels first"
        )
    if domains.dtype.is_floating_point or domains.dtype.is_complex or domains.dtype == torch.bool:
        raise ValueError(f"domains must be integers, got {domains.dtype}")
    if losses.numel() == 0:
        raise ValueError("the batch is empty")


def check_domain(domains: Tensor) -> None:
    """Raise ``TypeError`` unless domains are a tensor."""
    if not isinstance(domains, Tensor):
        raise TypeError(f"domains must be a tensor of integers, got {type(domains).__name__}: torch.as_tensor(domains)")


def reweighted_mean(losses: Tensor, coefficients: Tensor) -> Tensor:
    """A scalar that is ``losses.mean()`` to the last bit and has the gradient of ``(coefficients * losses).sum()``."""
    return _ReweightedMean.apply(losses, coefficients)  # type: ignore[no-any-return]


class _ReweightedMean(torch.autograd.Function):
    @staticmethod
    def forward(losses: Tensor, coefficients: Tensor) -> Tensor:
        return losses.mean()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # apart, for torch.func
        losses, coefficients = inputs
        ctx.save_for_backward(coefficients)
        ctx.dtype = losses.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (coefficients,) = ctx.saved_tensors
        return (gradient * coefficients).to(ctx.dtype), None
