"""steppe: training models that keep working on domains they have never seen.

The optimizers below need torch alone. The benchmark (:class:`Trainer`, :mod:`steppe.data`, the command ``steppe``)
needs the extra ``bench`` and is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from steppe.descents import Descent, GradientMatching, Perturbed, SurrogateGap
from steppe.errors import SteppeError
from steppe.geometries import Adaptive, Euclidean, Geometry, Leaves
from steppe.groups import parameter_groups
from steppe.methods import ASAM, DISAM, GSAM, SAGM, SAM
from steppe.objectives import DomainVariance, Mean, Objective, domain_means
from steppe.parts import Parts
from steppe.radii import Constant, Proportional, Radius
from steppe.sharpness import SharpnessAware

if TYPE_CHECKING:
    from steppe import data as data
    from steppe.training.trainer import Trainer

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
    "Trainer",
    "SteppeError",
]

_LAZY = {"Trainer": "steppe.training.trainer", "data": "steppe.data"}


def __getattr__(name: str) -> Any:
    """Import the benchmark's rooms when first asked for, and say how to install what they need."""
    if name not in _LAZY:
        raise AttributeError(f"module 'steppe' has no attribute {name!r}")
    try:
        module = importlib.import_module(_LAZY[name])
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("steppe"):
            raise
        raise ModuleNotFoundError(
            f"steppe.{name} needs {error.name!r}: pip install 'steppe[bench]'", name=error.name
        ) from error
    return module if name == "data" else getattr(module, name)
