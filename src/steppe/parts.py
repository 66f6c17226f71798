"""The four parts of a sharpness-aware method, together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steppe.descents import Descent, Perturbed
from steppe.geometries import Euclidean, Geometry
from steppe.objectives import Mean, Objective
from steppe.radii import Radius, as_radius


@dataclass(frozen=True)
class Parts:
    """What is climbed, in which geometry, how far, and which gradient is handed down.

    Raises:
        TypeError: a part lacks a member of its protocol; the message names it.
    """

    objective: Objective
    geometry: Geometry
    radius: Radius
    descent: Descent

    @classmethod
    def of(
        cls, objective: Objective | None, geometry: Geometry | None, radius: float | Radius, descent: Descent | None
    ) -> Parts:
        """The given parts; SAM's where none is given, and a number as a radius."""
        return cls(
            objective=_checked(objective or Mean(), Objective),
            geometry=_checked(geometry or Euclidean(), Geometry),
            radius=as_radius(radius),
            descent=_checked(descent or Perturbed(), Descent),
        )

    @property
    def needs_clean_pass(self) -> bool:
        """Whether ∇L(w) takes a pass of its own: the descent wants it and the climb's gradient is another one."""
        return self.descent.keeps_gradient and not self.objective.plain and not self.descent.shared


def _checked(part: Any, protocol: Any) -> Any:
    members = [name for name in vars(protocol) if not name.startswith("_")]
    missing = [name for name in members if not hasattr(part, name)]
    if missing or isinstance(part, type):
        kind = protocol.__name__.lower()
        fault = f"lacks {', '.join(missing)}" if missing else "is a class, not an instance: call it"
        name = part.__name__ if isinstance(part, type) else type(part).__name__
        raise TypeError(f"{name} cannot be the {kind}: it {fault}")
    return part
