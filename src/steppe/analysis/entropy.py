"""Local entropy: the loss of the ground around a model's weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from steppe.analysis.bars import bar
from steppe.analysis.evaluation import Loader, Loss, measure, repeatable
from steppe.analysis.keeping import kept, whole_parameters, written
from steppe.errors import unknown_name
from steppe.vectors import HALF, widen


@dataclass(frozen=True)
class LocalEntropy:
    """What :func:`local_entropy` found.

    Attributes:
        value: −log (1/n) Σ exp(−L_i), in the units of the loss (nats).
        standard_error: of ``value``, by the delta method; NaN where a loss is NaN.
        losses: L_i = L(w + σ z_i), as far as they are finite or not.
        sigma: σ.
        centre: L(w).
    """

    value: float
    standard_error: float
    losses: tuple[float, ...] = field(repr=False)
    sigma: float
    centre: float

    @property
    def effective_samples(self) -> float:
        """(Σ Z)²/Σ Z² of the Z_i = exp(−L_i): how many of the samples carry the mean. Few, and σ is too large for so
        few samples: neither ``value`` nor ``standard_error`` is to be trusted."""
        weights = _relative(torch.tensor(self.losses, dtype=torch.float64))
        return (weights.sum().square() / weights.square().sum()).item()

    @property
    def non_finite(self) -> int:
        """How many of the losses are infinite (and count as exp(−∞) = 0) or NaN (and make ``value`` NaN)."""
        return sum(not math.isfinite(loss) for loss in self.losses)

    def __repr__(self) -> str:
        broken = f", {self.non_finite} of them not finite" if self.non_finite else ""
        return (
            f"LocalEntropy({self.value:.6g} ± {self.standard_error:.2g} at sigma {self.sigma:g}, loss "
            f"{self.centre:.6g} in its centre, {len(self.losses)} samples{broken})"
        )


def local_entropy(
    model: nn.Module,
    loader: Loader,
    *,
    sigma: float,
    samples: int = 64,
    seed: int = 0,
    loss: Loss | None = None,
    names: Iterable[str] | None = None,
    progress: bool = False,
) -> LocalEntropy:
    """Local entropy loss −log E exp(−L(θ')), θ' ~ N(w, σ²I), by Monte Carlo (Baldassi et al., PNAS 2016; Chaudhari et
    al., ICLR 2017).

    L is the mean loss over the loader. With Z_i = exp(−L(w + σ z_i)), i = 1…n, and Z̄ their mean,

        value = −log Z̄ = log n − logsumexp(−L_i),      standard error = s_Z / (Z̄ √n),

    s_Z the standard deviation of the Z_i (n − 1). The error is the delta method's, which holds where it is far below 1.
    The logarithm of a mean is biased: E(value) is too large by about half the squared standard error.

    In a minimum of a quadratic loss with Hessian H the value is L(w) + ½ log det(I + σ²H): it grows with the curvature.
    Draws are not made in pairs ±z: near a minimum both have the same loss, and the second would be wasted.

    The same seed gives the same z_i on one kind of device, for every model of one architecture: differences between two
    models have less noise than either. BatchNorm's statistics are those of w throughout.

    Args:
        model: called with ``x``; comes back bit for bit, also after an exception.
        loader: batches ``(x, y, ...)``, gone through n + 1 times.
        sigma: σ > 0, in the units of the weights.
        samples: n ≥ 2.
        seed: of a generator of its own.
        loss: see :func:`~steppe.analysis.evaluate`.
        names: the parameters to be disturbed; those that require a gradient by default, all of them for ``"all"``.
        progress: show a bar.

    Raises:
        ValueError: σ is not positive and finite; n < 2; the loader is empty or an iterator; a name is unknown (with
            near matches); no parameter requires a gradient; parameters are sharded or complex.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    if samples < 2:
        raise ValueError(f"a standard error takes at least 2 samples, got {samples}")
    repeatable(loader)
    chosen = _chosen(model, names)
    with kept(model, weights=True) as copies, bar("local entropy", samples + 1, progress) as advance:
        centre = measure(model, loader, loss).loss
        advance()
        generators = {p.device: torch.Generator(p.device).manual_seed(seed) for p in chosen}
        losses = []
        for _ in range(samples):
            for parameter in chosen:
                start = copies[parameter]
                z = torch.empty_like(widen(start), memory_format=torch.contiguous_format)
                z.normal_(generator=generators[parameter.device])
                parameter.copy_(widen(start) + sigma * z)
            written()
            losses.append(measure(model, loader, loss).loss)
            advance()
    value, error = _estimate(torch.tensor(losses, dtype=torch.float64))
    return LocalEntropy(value, error, tuple(losses), float(sigma), centre)


def _estimate(losses: Tensor) -> tuple[float, float]:
    """−log of the mean of exp(−L), and its standard error."""
    n = len(losses)
    value = math.log(n) - torch.logsumexp(-losses, 0).item()
    relative = _relative(losses)
    mean = relative.mean()
    error = ((relative - mean).square().sum() / (n * (n - 1))).sqrt() / mean
    return value, error.item()


def _relative(losses: Tensor) -> Tensor:
    """exp(−L) up to a common factor, that of the smallest loss: nothing overflows, and not all of it underflows."""
    return (losses.min() - losses).exp()


def _chosen(model: nn.Module, names: Iterable[str] | None) -> list[nn.Parameter]:
    parameters = whole_parameters(model)
    if names is None:
        chosen = [p for p in parameters.values() if p.requires_grad]
        if not chosen:
            raise ValueError("no parameter requires a gradient: say which to disturb by names=, or names='all'")
    elif names == "all":
        chosen = [p for p in parameters.values() if p.is_floating_point()]
    else:
        wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        for name in wanted:
            if name not in parameters:
                raise unknown_name("parameter", name, parameters)
        chosen = [parameters[name] for name in wanted]
        if not chosen:
            raise ValueError("names is empty: name parameters, or leave it out for all that require a gradient")
    if any(p.dtype in HALF for p in chosen):
        warnings.warn(
            "the disturbed weights are in half precision, which rounds a small sigma away: measure a float32 copy of "
            "the model",
            stacklevel=3,
        )
    return chosen
