"""steppe: training models that keep working on domains they have never seen.

The optimizers and their parts need torch alone. The benchmark (:class:`Trainer`, :mod:`steppe.data`, the command
``steppe``) needs the extra ``bench``. Every name is imported when first used, so that ``steppe --help`` does not wait
for torch, nor an optimizer for the benchmark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steppe.lazy import lazy_names

if TYPE_CHECKING:
    from steppe import analysis as analysis
    from steppe import averaging as averaging
    from steppe import data as data
    from steppe import penalties as penalties
    from steppe.averaging.lookahead import Lookahead
    from steppe.averaging.swad import SWAD
    from steppe.descents import Descent, GradientMatching, Gradients, Perturbed, SurrogateGap
    from steppe.errors import SteppeError
    from steppe.estimates import Friendly, Smoothed
    from steppe.geometries import Adaptive, Euclidean, Fisher, Geometry, Leaves
    from steppe.groups import parameter_groups
    from steppe.methods import (
        ASAM,
        DISAM,
        GSAM,
        SAGM,
        SAM,
        TRAM,
        FisherSAM,
        FriendlySAM,
        LookSAM,
        TRAMFisher,
        VaSSO,
    )
    from steppe.objectives import DomainVariance, Mean, Objective, domain_means
    from steppe.parts import Parts
    from steppe.passes import View
    from steppe.radii import Constant, Proportional, Radius
    from steppe.reuse import Reuse
    from steppe.sharpness import SharpnessAware
    from steppe.training.method import Method
    from steppe.training.recipes import build
    from steppe.training.trainer import Trainer as Trainer
    from steppe.trust.fisher import NoisedFisher
    from steppe.trust.region import TrustRegion

__version__ = "0.1.0"

__all__ = [
    "SharpnessAware",
    "Parts",
    "SAM",
    "ASAM",
    "FisherSAM",
    "GSAM",
    "SAGM",
    "DISAM",
    "TRAM",
    "TRAMFisher",
    "FriendlySAM",
    "VaSSO",
    "LookSAM",
    "Objective",
    "Mean",
    "DomainVariance",
    "Geometry",
    "Leaves",
    "Euclidean",
    "Adaptive",
    "Fisher",
    "NoisedFisher",
    "Friendly",
    "Smoothed",
    "Radius",
    "Constant",
    "Proportional",
    "TrustRegion",
    "Descent",
    "Gradients",
    "Perturbed",
    "SurrogateGap",
    "GradientMatching",
    "Reuse",
    "View",
    "Lookahead",
    "SWAD",
    "averaging",
    "penalties",
    "analysis",
    "build",
    "Method",
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
        "methods": (
            "SAM",
            "ASAM",
            "FisherSAM",
            "GSAM",
            "SAGM",
            "DISAM",
            "TRAM",
            "TRAMFisher",
            "FriendlySAM",
            "VaSSO",
            "LookSAM",
        ),
        "objectives": ("Objective", "Mean", "DomainVariance", "domain_means"),
        "geometries": ("Geometry", "Leaves", "Euclidean", "Adaptive", "Fisher"),
        "estimates": ("Friendly", "Smoothed"),
        "radii": ("Radius", "Constant", "Proportional"),
        "trust.region": ("TrustRegion",),
        "trust.fisher": ("NoisedFisher",),
        "descents": ("Descent", "Gradients", "Perturbed", "SurrogateGap", "GradientMatching"),
        "reuse": ("Reuse",),
        "passes": ("View",),
        "averaging": (),
        "averaging.lookahead": ("Lookahead",),
        "averaging.swad": ("SWAD",),
        "penalties": (),
        "analysis": (),
        "groups": ("parameter_groups",),
        "errors": ("SteppeError",),
        "training.recipes": ("build",),
        "training.method": ("Method",),
        "training.trainer": ("Trainer",),
        "data": (),
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
