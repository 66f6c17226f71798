"""How far the climb goes."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Radius(Protocol):
    """The third of the four parts. Write your own by giving a class this method."""

    def length(self, group: Mapping[str, Any]) -> float | Tensor:
        """ρ for a parameter group of the base optimizer, now.

        Args:
            group: the entry of ``param_groups``; ``group["lr"]`` is the current learning rate.

        Returns:
            ρ ≥ 0, a number or a 0-dim tensor on the device (a measured radius need not come to the host).
            A plain 0 means that the group is left out of the climb.
        """


class Constant:
    """A fixed ρ. Wherever a radius is asked for, the plain number does.

    Raises:
        ValueError: ρ is negative, infinite or not a number.
    """

    def __init__(self, rho: float) -> None:
        self.rho = check_radius(rho)

    def length(self, group: Mapping[str, Any]) -> float | Tensor:
        return self.rho

    def __repr__(self) -> str:
        return f"Constant({self.rho})"


class Proportional:
    """ρ_t linear in the learning rate: GSAM's schedule (Zhuang et al. 2022, Eq. 7).

        ρ_t = ρ_min + (ρ_max − ρ_min) · (lr_t − lr_min) / (lr_max − lr_min)

    The learning rate is read from the parameter group at each step, so any scheduler drives it; outside
    [lr_min, lr_max] the line goes on, but not below 0.

    Args:
        rho_max: ρ at the learning rate ``lr_max``.
        rho_min: ρ at the learning rate ``lr_min``.
        lr_max: the schedule's largest learning rate.
        lr_min: its smallest.

    Raises:
        ValueError: a radius is negative, or ``lr_max`` is not larger than ``lr_min``.
    """

    def __init__(self, rho_max: float, rho_min: float, lr_max: float, lr_min: float = 0.0) -> None:
        if not lr_max > lr_min:
            raise ValueError(f"lr_max must be larger than lr_min, got {lr_max} and {lr_min}")
        self.rho_max = check_radius(rho_max)
        self.rho_min = check_radius(rho_min)
        self.lr_max = lr_max
        self.lr_min = lr_min

    def length(self, group: Mapping[str, Any]) -> float | Tensor:
        slope = (self.rho_max - self.rho_min) / (self.lr_max - self.lr_min)
        rho = self.rho_min + slope * (group["lr"] - self.lr_min)
        return rho.clamp_min(0.0) if isinstance(rho, Tensor) else max(rho, 0.0)

    def __repr__(self) -> str:
        return f"Proportional({self.rho_max}, {self.rho_min}, lr_max={self.lr_max}, lr_min={self.lr_min})"


def check_radius(rho: float) -> float:
    """ρ itself, or ``ValueError`` where it is negative, infinite or not a number."""
    if not 0 <= rho < float("inf"):
        raise ValueError(f"a radius must be at least 0 and finite, got {rho}")
    return rho


def as_radius(radius: float | Radius) -> Radius:
    """A number becomes :class:`Constant`; a radius stays what it is.

    Raises:
        TypeError: it is neither, or a class.
    """
    if isinstance(radius, Real):  # NumPy's numbers too
        return Constant(float(radius))
    if isinstance(radius, type):
        raise TypeError(f"{radius.__name__} cannot be the radius: it is a class, not an instance: call it")
    if isinstance(radius, Radius):
        return radius
    raise TypeError(f"a radius is a number or has a method length(group), got {type(radius).__name__}")
