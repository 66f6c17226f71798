"""The variance of mini-batch gradients: sharpness as the DISAM paper estimates it on the unseen domain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steppe.analysis.bars import bar, length
from steppe.analysis.evaluation import Loader, Loss, batches, sample_losses
from steppe.analysis.exact import exact
from steppe.analysis.keeping import bare, kept, whole_parameters


@dataclass(frozen=True)
class GradientVariance:
    """What :func:`gradient_variance` found.

    Attributes:
        value: Σ‖g_b − ḡ‖² / (B − 1).
        norm: ‖ḡ‖, the norm of the mean gradient.
        batches: B.
        size: samples in a batch.
    """

    value: float
    norm: float
    batches: int
    size: int

    def __repr__(self) -> str:
        return (
            f"GradientVariance({self.value:.6g} over {self.batches} batches of {self.size}, mean gradient of norm "
            f"{self.norm:.6g})"
        )


def gradient_variance(
    model: nn.Module, loader: Loader, *, loss: Loss | None = None, progress: bool = False
) -> GradientVariance:
    """Var{∇L(w; B)} = 1/(B − 1) Σ_b ‖g_b − ḡ‖² over the mini-batches of a loader, summed over all parameters.

    g_b = ∇L(w; B_b) is the gradient of the mean loss of batch b, ḡ the mean of the g_b: the trace of the gradients'
    covariance, an estimate of sharpness from first derivatives alone (Jiang et al., ICLR 2020 and 2023), which the
    DISAM paper (Zhang et al., ICLR 2024, section 4.5) follows on the unseen domain over training. At equal n it is
    about 1/n of the variance of single samples' gradients, so figures compare only for batches of one size: a last
    batch that is smaller is left out.

    The model is in evaluation mode (BatchNorm by its running statistics, no dropout) and comes back bit for bit;
    gradients that lie in ``.grad`` are not touched. Two copies of the parameters are held, in float64.

    Args:
        model: called with ``x``; its parameters that require a gradient are looked at.
        loader: batches ``(x, y, ...)``, gone through once; two of the first one's size at least.
        loss: see :func:`~steppe.analysis.evaluate`.
        progress: show a bar.

    Raises:
        ValueError: fewer than two batches of the first one's size; no parameter requires a gradient; parameters are
            sharded or complex.
    """
    parameters = [parameter for parameter in whole_parameters(model).values() if parameter.requires_grad]
    if not parameters:
        raise ValueError("no parameter requires a gradient")
    inner = bare(model)  # in DistributedDataParallel one rank's pass would wait for the buffers of the others
    mean: list[Tensor] = []
    total = torch.zeros((), dtype=torch.float64)
    count, size = 0, 0
    with kept(model), bar("gradient variance", length(loader), progress) as advance:
        for x, y in batches(model, loader):
            with torch.enable_grad():
                losses, n = sample_losses(loss, inner(x), y)
                size = size or n
                if n != size:
                    continue
                found = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
            # Welford: exact where all gradients are alike, as Σ‖g‖² − B‖ḡ‖² is not.
            gradients = [exact(torch.zeros_like(p) if g is None else g) for p, g in zip(parameters, found, strict=True)]
            count += 1
            mean = mean or [torch.zeros_like(g) for g in gradients]
            for g, m in zip(gradients, mean, strict=True):
                away = g - m
                m += away / count
                total += (away * (g - m)).sum().cpu()
            advance()
    if count < 2:
        raise ValueError(
            f"a variance takes at least 2 batches of equal size, got {count}: use smaller batches, or a loader that is "
            "not an iterator gone through already"
        )
    norm = torch.stack([m.square().sum().cpu() for m in mean]).sum().sqrt()
    return GradientVariance(total.item() / (count - 1), norm.item(), count, size)
