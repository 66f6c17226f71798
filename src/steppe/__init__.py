"""steppe: training models that keep working on domains they have never seen.

The optimizers and their parts need torch alone. The benchmark (:class:`Trainer`, :mod:`steppe.data`, the command
``steppe``) needs the extra ``bench``. Every name is imported when first used, so that ``steppe --help`` does not wait
for torch, nor an optimizer for the benchmark.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

_HOMES = {
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
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from its module, or the room ``data``, saying what to install where something is missing."""
    if name not in _HOME and name != "data":
        raise AttributeError(f"module 'steppe' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"steppe.{_HOME.get(name, name)}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("steppe"):
            raise
        what = f"steppe.{name} needs {error.name!r}: pip install 'steppe[bench]'"
        raise ModuleNotFoundError(what, name=error.name) from error
    value = module if name == "data" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
