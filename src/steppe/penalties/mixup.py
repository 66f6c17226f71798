"""Mixup between domains: a transform of the batch, and the losses that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import cross_entropy

from steppe.penalties.penalty import check_tensor
from steppe.penalties.segments import Segments


@dataclass(frozen=True)
class MixedBatch:
    """A batch of mixed samples, in the order of the samples that were given.

    Attributes:
        x: λ x + (1 − λ) x', shape and dtype of x.
        labels: y, those given, ``[N]``.
        partner_labels: y', ``[N]``.
        weight: λ of each sample, ``[N]``, float32 or better.
        domain: to which domain a mixed sample counts: that of x, as given (see :class:`Mixup`).
        partner: the index of x' in the batch, ``[N]``.
    """

    x: Tensor
    labels: Tensor
    partner_labels: Tensor
    weight: Tensor
    domain: Tensor
    partner: Tensor

    def losses(self, logits: Tensor) -> Tensor:
        """λ ℓ(logits, y) + (1 − λ) ℓ(logits, y') with the cross-entropy ℓ, one a sample, ``[N]``."""
        own = cross_entropy(logits, self.labels.long(), reduction="none")
        other = cross_entropy(logits, self.partner_labels.long(), reduction="none")
        weight = self.weight.to(own.dtype)
        return weight * own + (1 - weight) * other


class Mixup:
    r"""Mixes each sample with one of another domain (Zhang et al., ICLR 2018; between domains: Xu et al., AAAI 2020)::

        mixup = steppe.penalties.Mixup(alpha=0.2)

        def closure():
            optimizer.zero_grad()
            mixed = mixup(x, labels, domain)
            loss = optimizer.objective(mixed.losses(model(mixed.x)), mixed.domain)
            loss.backward()
            return loss
        optimizer.step(closure)
        mixup.step()

    As in DomainBed: the domains of the batch are put in a random circle, each is mixed with the next, sample by sample
    in the batch's order, with one λ ~ Beta(α, α) for each such pair of domains. Where the next domain has fewer
    samples they are taken again from its first on, so that the shape is that of the batch (DomainBed cuts the longer
    of the two). A batch of one domain stays as it is.

    The pairs and the λ are drawn once a step: all calls before :meth:`step`, for batches of one size, get the same,
    drawn from torch's generator on the CPU as the first call found it. A run that restores that generator between two
    steps resumes exactly.

    Which domain is a mixed sample of? Each pair (i, next of i) is one mixture with one λ, and each domain is first in
    exactly one pair; so the pair is called i. A batch has as many mixtures as it had domains, with the same numbers of
    samples, and DISAM equalises the losses of the mixtures. (Naming it by the larger share instead would merge two
    mixtures under one name and leave other domains without samples.)

    Args:
        alpha: α > 0, DomainBed's ``mixup_alpha``. Small values keep most λ near 0 or 1.

    Raises:
        ValueError: α is not positive and finite.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {alpha}")
        self.alpha = alpha
        self._generator_state: Tensor | None = None

    def __call__(self, x: Tensor, labels: Tensor, domain: Tensor) -> MixedBatch:
        """Mix a batch.

        Args:
            x: inputs, floating-point, ``[N, ...]``; for text, the embeddings.
            labels: classes, integers of shape ``[N]``.
            domain: integers of shape ``[N]``.

        Raises:
            TypeError: something is no tensor.
            ValueError: shapes or dtypes are wrong.
        """
        check_tensor("x", x)
        check_tensor("labels", labels)
        check_tensor("domain", domain)
        if not x.dtype.is_floating_point:
            raise ValueError(f"x must be floating-point to be mixed, got {x.dtype}; mix the embeddings of text")
        if not x.shape[:1] == labels.shape == domain.shape or x.shape[0] == 0:
            sizes = f"x of {list(x.shape)}, labels of {list(labels.shape)}, domain of {list(domain.shape)}"
            raise ValueError(f"Mixup needs one label and one domain a sample, and samples; got {sizes}")
        order, lam = (drawn.to(x.device, non_blocking=True) for drawn in self._draw(x.shape[0]))
        first, partner = _circle(domain, order)
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = lam[first].to(dtype)
        share = weight.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
        mixed = torch.lerp(x[partner], x, share)
        return MixedBatch(mixed, labels, labels[partner], weight, domain, partner)

    def _draw(self, samples: int) -> tuple[Tensor, Tensor]:
        """A random order of the samples and as many λ, from the state that the first call of the step found."""
        if self._generator_state is None:
            self._generator_state = torch.get_rng_state()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator_state)
            drawn = self._sample(samples)
        # Every pass moves the generator as the first did: so a caller who sets it back between the passes gets the
        # same dropout in both.
        self._sample(samples)
        return drawn

    def _sample(self, samples: int) -> tuple[Tensor, Tensor]:
        alpha = torch.tensor(self.alpha, dtype=torch.float64, device="cpu")
        return torch.randperm(samples, device="cpu"), Beta(alpha, alpha).sample((samples,))

    def step(self) -> None:
        """The optimizer's step is made: the next call draws anew. Call it once a step."""
        self._generator_state = None

    def state_dict(self) -> dict[str, Any]:
        """Empty: between two steps there is nothing to remember but torch's generator, which is the caller's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Forget a step that was begun.

        Raises:
            ValueError: it is the state of something else.
        """
        if state:
            raise ValueError(f"this is no state of {self!r}: it holds {', '.join(state)}")
        self._generator_state = None

    def __repr__(self) -> str:
        return f"Mixup(alpha={self.alpha})"


def _circle(domain: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Puts the domains of the batch in a circle, by the place in ``order`` of each one's first sample.

    Returns:
        For each sample the index of the first sample of its domain, and that of its partner in the next domain.
    """
    samples = domain.shape[0]
    segments = Segments(domain, torch.float32)
    indices = torch.arange(samples, device=domain.device)
    first = torch.where(segments.same > 0, indices, samples).amin(1)
    place = order[first]
    later = torch.where(place[None, :] > place[:, None], place, samples).amin(1)
    following = torch.where(later < samples, later, place.amin())  # after the last place comes the first
    in_next = place[None, :] == following[:, None]
    rank = segments.rank % in_next.sum(1)
    partner = (in_next & (segments.rank[None, :] == rank[:, None])).to(torch.uint8).argmax(1)
    return first, partner
