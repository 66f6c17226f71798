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

    # What a part may have, with what it means that it does not: a part of a user's own stays small, and stays valid
    # when a later version asks a question more.

    @property
    def plain(self) -> bool:
        """Whether the objective is the mean loss itself."""
        return bool(getattr(self.objective, "plain", False))

    @property
    def needs_names(self) -> bool:
        """Whether the geometry must know the parameters' names."""
        return bool(getattr(self.geometry, "needs_names", False))

    @property
    def keeps_gradient(self) -> bool:
        """Whether the descent needs ∇L(w)."""
        return bool(getattr(self.descent, "keeps_gradient", False))

    @property
    def retreat(self) -> float:
        """α of the perturbation ε − α g."""
        return float(getattr(self.descent, "retreat", 0.0))

    @property
    def needs_clean_pass(self) -> bool:
        """Whether ∇L(w) takes a pass of its own: the descent wants it and the climb's gradient is another one."""
        return self.keeps_gradient and not self.plain and not getattr(self.descent, "shared", False)


def _checked(part: Any, protocol: Any) -> Any:
    members = [name for name in vars(protocol) if not name.startswith("_")]
    missing = [name for name in members if not hasattr(part, name)]
    if missing or isinstance(part, type):
        kind = protocol.__name__.lower()
        fault = f"lacks {', '.join(missing)}" if missing else "is a class, not an instance: call it"
        name = part.__name__ if isinstance(part, type) else type(part).__name__
        raise TypeError(f"{name} cannot be the {kind}: it {fault}")
    return part
