"""steppe: training models that keep working on domains they have never seen.

The optimizers and their parts need torch alone. The benchmark (:class:`Trainer`, :mod:`steppe.data`, the command
``steppe``) needs the extra ``bench``. Every name is imported when first used, so that ``steppe --help`` does not wait
for torch, nor an optimizer for the benchmark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steppe.lazy import lazy_names

if TYPE_CHECKING:
    from steppe import data as data
    from steppe.descents import Descent, GradientMatching, Perturbed, SurrogateGap
    from steppe.errors import SteppeError
    from steppe.geometries import Adaptive, Euclidean, Geometry, Leaves
    from steppe.groups import parameter_groups
    from steppe.methods import ASAM, DISAM, GSAM, SAGM, SAM
    from steppe.objectives import DomainVariance, Mean, Objective, domain_means
    from steppe.parts import Parts
    from steppe.radii import Constant, Proportional, Radius
    from steppe.sharpness import SharpnessAware
    from steppe.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

__all__ = [
    "SharpnessAware",
    "Parts",
    "SAM",
    "ASAM",
    "GSAM",
    "SAGM",
    "DISAM",
    "Objective",
    "Mean",
    "DomainVariance",
    "Geometry",
    "Leaves",
    "Euclidean",
    "Adaptive",
    "Radius",
    "Constant",
    "Proportional",
    "Descent",
    "Perturbed",
    "SurrogateGap",
    "GradientMatching",
    "parameter_groups",
    "domain_means",
    "SteppeError",
]
# Trainer and data are public too, but a star import must work where only torch is installed.

__getattr__ = lazy_names(
    __name__,
    {
        "sharpness": ("SharpnessAware",),
        "parts": ("Parts",),
        "methods": ("SAM", "ASAM", "GSAM", "SAGM", "DISAM"),
        "objectives": ("Objective", "Mean", "DomainVariance", "domain_means"),
        "geometries": ("Geometry", "Leaves", "Euclidean", "Adaptive"),
        "radii": ("Radius", "Constant", "Proportional"),
        "descents": ("Descent", "Perturbed", "SurrogateGap", "GradientMatching"),
        "groups": ("parameter_groups",),
        "errors": ("SteppeError",),
        "training.trainer": ("Trainer",),
        "data": (),
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
