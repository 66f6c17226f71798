"""Instruments: what a trajectory's weights and the ground around them look like, for any model and any loader.

=========================  ============================================================  ==================
instrument                 measures                                                      costs
=========================  ============================================================  ==================
:func:`evaluate`           mean loss and accuracy                                        one pass
:func:`pairwise`           distances and cosines between snapshots of a trajectory       one read of each
:func:`linear_cka`         how alike two sets of features are                            (no model)
:func:`cka`                how alike the layers of two models are, from mini-batches     one pass of each
:func:`local_entropy`      −log E exp(−L(w + σz)): the loss of the ground around w       samples + 1 passes
:func:`gradient_variance`  how far the gradients of mini-batches lie apart               one pass and back
:func:`segment`            loss and accuracy along the line between two sets of weights  points passes
:func:`plane`              loss and accuracy in the plane through three                  points² passes
=========================  ============================================================  ==================

A loader is anything that gives batches ``(x, y, ...)``: a ``DataLoader``, or a list of batches (the quickest where the
data fit on the device: nothing is read or decoded twice). The model is called with ``x`` alone, in evaluation mode and
(but for gradient_variance) without gradients, and is left bit for bit as it was: weights, buffers and modes, after an
exception too. torch's global generators are put back, and every pass of one instrument sees them alike: a shuffled
loader gives the same batches at every point, and training afterwards is not shifted.

Everything here needs torch alone, but for paths to ``.safetensors`` files (safetensors) and :mod:`figures` (plotly).
``progress=True`` shows a bar on standard error where rich is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steppe.lazy import lazy_names

if TYPE_CHECKING:
    from steppe.analysis import figures as figures
    from steppe.analysis.diversity import Pairwise, pairwise
    from steppe.analysis.entropy import LocalEntropy, local_entropy
    from steppe.analysis.evaluation import Evaluation, evaluate
    from steppe.analysis.gradients import GradientVariance, gradient_variance
    from steppe.analysis.landscape import Plane, Segment, plane, segment
    from steppe.analysis.similarity import CKA, cka, linear_cka

_HOMES: dict[str, tuple[str, ...]] = {
    "evaluation": ("evaluate", "Evaluation"),
    "diversity": ("pairwise", "Pairwise"),
    "similarity": ("linear_cka", "cka", "CKA"),
    "entropy": ("local_entropy", "LocalEntropy"),
    "gradients": ("gradient_variance", "GradientVariance"),
    "landscape": ("segment", "Segment", "plane", "Plane"),
    "figures": (),
}

__all__ = [
    "evaluate",
    "Evaluation",
    "pairwise",
    "Pairwise",
    "linear_cka",
    "cka",
    "CKA",
    "local_entropy",
    "LocalEntropy",
    "gradient_variance",
    "GradientVariance",
    "segment",
    "Segment",
    "plane",
    "Plane",
]
# figures is public too, but a star import must work where only torch is installed.

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "figures"})
