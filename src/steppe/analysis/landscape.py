"""Loss and accuracy between sets of weights: along a line through two, in the plane through three."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steppe.analysis.bars import bar
from steppe.analysis.evaluation import Evaluation, Loader, Loss, measure, repeatable
from steppe.analysis.keeping import devices, kept
from steppe.analysis.states import Places, State
from steppe.randomness import undisturbed

Refresh = Callable[[nn.Module], Any] | Iterable[Any]
"""What brings BatchNorm's statistics up to date at a point: a function of the model, or batches for
:func:`steppe.averaging.reestimate_batch_norm`."""


@dataclass(frozen=True)
class Segment:
    """What :func:`segment` found.

    Attributes:
        positions: t of each point: 0 at the start, 1 at the end.
        loss: the mean loss at each, in nats; not finite where a sample's is not.
        accuracy: in [0, 1]; ``None`` where the targets are not classes.
        distance: ‖w_end − w_start‖ over the parameters.
        start, end: what was measured at the two states themselves.
    """

    positions: tuple[float, ...] = field(repr=False)
    loss: tuple[float, ...] = field(repr=False)
    accuracy: tuple[float, ...] | None = field(repr=False)
    distance: float
    start: Evaluation
    end: Evaluation

    @property
    def non_finite(self) -> int:
        """The number of points whose loss is not finite."""
        return sum(not math.isfinite(loss) for loss in self.loss)

    def __repr__(self) -> str:
        highest = max(range(len(self.loss)), key=lambda i: (math.isnan(self.loss[i]), self.loss[i]))
        return (
            f"Segment({len(self.positions)} points over a distance of {self.distance:.6g}, loss {self.start.loss:.6g} "
            f"at the start, {self.end.loss:.6g} at the end, at most {self.loss[highest]:.6g} at "
            f"{self.positions[highest]:.3g})"
        )


@dataclass(frozen=True, eq=False)
class Plane:
    """What :func:`plane` found.

    Attributes:
        x, y: the coordinates of the grid, in units of distance between weights.
        loss: the mean loss, ``[len(y), len(x)]``, float64, in nats; not finite where a sample's is not.
        accuracy: in [0, 1], of the same shape; ``None`` where the targets are not classes.
        corners: (x, y) of the three states.
        at: what was measured at the three states themselves.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    loss: Tensor
    accuracy: Tensor | None
    corners: tuple[tuple[float, float], ...]
    at: tuple[Evaluation, ...]

    @property
    def non_finite(self) -> int:
        """The number of points of the grid whose loss is not finite."""
        return int((~self.loss.isfinite()).sum())

    def __repr__(self) -> str:
        corners = ", ".join(
            f"{at.loss:.6g} at ({x:.3g}, {y:.3g})" for at, (x, y) in zip(self.at, self.corners, strict=True)
        )
        return f"Plane({len(self.x)} × {len(self.y)} points, loss {corners})"


def segment(
    model: nn.Module,
    start: State,
    end: State,
    loader: Loader,
    points: int = 21,
    extend: float = 0.0,
    *,
    refresh: Refresh | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> Segment:
    """Loss and accuracy at w(t) = (1 − t) w_start + t w_end (Goodfellow et al., ICLR 2015).

    Mixtures are computed in float64 and rounded once to the model's dtype; at t = 0 and 1 they are the states, bit for
    bit. Buffers of floating point (BatchNorm's statistics) are mixed as the weights are, but never beyond either end;
    others are those of ``start``. Statistics mixed so are not those of the mixed weights, and a barrier may be their
    fault alone: with BatchNorm, pass ``refresh``.

    Args:
        model: of the architecture; its own weights do not matter, and come back bit for bit, also after an exception.
        start, end: state dicts, modules or paths of ``.safetensors`` files. Buffers that they lack are the model's.
        loader: batches ``(x, y, ...)``, gone through at every point.
        points: at least 2, at equal distances, both ends of the line included.
        extend: how far the line goes on beyond either end, in its length.
        refresh: called with the model, in the modes it came in, at every point before it is measured; or batches, from
            which :func:`steppe.averaging.reestimate_batch_norm` takes new statistics at every point.
        loss: see :func:`~steppe.analysis.evaluate`.
        progress: show a bar.

    Raises:
        ValueError: the two states are equal, or of another model; fewer than two points; ``extend`` is negative; the
            loader is empty or an iterator; parameters are sharded or complex.
    """
    if points < 2:
        raise ValueError(f"a line takes at least 2 points, got {points}")
    if not 0 <= extend < math.inf:
        raise ValueError(f"extend must be at least 0 and finite, got {extend}")
    repeatable(loader)
    positions = _spread(0.0 - extend, 1.0 + extend, points)
    renew = _renewal(model, refresh)
    with kept(model, weights=True):
        places = Places(model, [(start, "start"), (end, "end")])
        distance = math.sqrt(places.differences(0, [1]).item())
        if distance == 0:
            raise ValueError("start and end are the same weights: there is no line through them")
        _finite(distance)
        every = list(dict.fromkeys([0.0, 1.0, *positions]))
        with bar("along the line", len(every), progress) as advance:
            found = {t: _at(model, places, (1 - t, t), loader, renew, loss, advance) for t in every}
    along = [found[t] for t in positions]
    accuracy = [each.accuracy for each in along if each.accuracy is not None]
    return Segment(
        positions=tuple(positions),
        loss=tuple(each.loss for each in along),
        accuracy=tuple(accuracy) if len(accuracy) == len(along) else None,
        distance=distance,
        start=found[0.0],
        end=found[1.0],
    )


def plane(
    model: nn.Module,
    states: Sequence[State],
    loader: Loader,
    points: int | tuple[int, int] = 15,
    margin: float = 0.2,
    *,
    refresh: Refresh | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> Plane:
    """Loss and accuracy in the plane through three sets of weights (Garipov et al., NeurIPS 2018).

        u = w₂ − w₁,   v = (w₃ − w₁) − ⟨w₃ − w₁, u⟩/‖u‖² u,   P(x, y) = w₁ + x u/‖u‖ + y v/‖v‖

    so distances in the picture are distances between weights: w₁ lies at (0, 0), w₂ at (‖u‖, 0), w₃ at
    (⟨w₃ − w₁, u⟩/‖u‖, ‖v‖). The three themselves are measured too, with their own bits. For precision and for buffers
    see :func:`segment`: P is a mixture of the three with shares that sum to 1. Outside of the triangle, where one of
    them is negative, it counts 0 for the buffers.

    Args:
        model: of the architecture; comes back bit for bit, also after an exception.
        states: w₁, w₂, w₃: state dicts, modules or paths of ``.safetensors`` files.
        loader: batches ``(x, y, ...)``, gone through at every point.
        points: in x and in y, at least 2 each; one number for both.
        margin: how far the grid goes beyond the triangle on each side, in its extent in that direction.
        refresh, loss, progress: see :func:`segment`.

    Raises:
        ValueError: the three are not three; two are equal, or all lie on a line to within the rounding of the weights
            (use :func:`segment`); one is of another model; too few points; ``margin`` is negative; the loader is empty
            or an iterator; parameters are sharded or complex.
    """
    if isinstance(states, str | nn.Module) or len(states) != 3:
        raise ValueError("a plane goes through three sets of weights: pass (w1, w2, w3)")
    counts = (points, points) if isinstance(points, int) else tuple(points)
    if len(counts) != 2 or min(counts) < 2:
        raise ValueError(f"a grid takes at least 2 points in x and in y, got {points}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be at least 0 and finite, got {margin}")
    repeatable(loader)
    renew = _renewal(model, refresh)
    with kept(model, weights=True):
        places = Places(model, [(state, f"w{i}") for i, state in enumerate(states, 1)])
        corners = _corners(places)
        (_, _), (length, _), (along, height) = corners
        x = _spread(*_widened(min(0.0, along), max(length, along), margin), counts[0])
        y = _spread(*_widened(0.0, height, margin), counts[1])
        own = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
        grid = [_shares(corners, (each, other)) for other in y for each in x]
        with bar("in the plane", len(own) + len(grid), progress) as advance:
            found = [_at(model, places, shares, loader, renew, loss, advance) for shares in (*own, *grid)]
    at, cells = found[:3], found[3:]
    losses = torch.tensor([each.loss for each in cells], dtype=torch.float64).view(len(y), len(x))
    right = [each.accuracy for each in cells if each.accuracy is not None]
    accuracy = torch.tensor(right, dtype=torch.float64).view(len(y), len(x)) if len(right) == len(cells) else None
    return Plane(tuple(x), tuple(y), losses, accuracy, corners, tuple(at))


def _corners(places: Places) -> tuple[tuple[float, float], ...]:
    """Where the three states lie in their plane."""
    gram = places.differences(0, [1, 2])
    _finite(gram.sum().item())
    length, other = gram.diagonal().sqrt().tolist()
    apart = math.sqrt(max(gram[0, 0].item() + gram[1, 1].item() - 2 * gram[0, 1].item(), 0.0))
    # What is a difference of squares has 1e-16 of their size as rounding, and its root 1e-8.
    for distance, least, pair in (
        (length, 0.0, "w1 and w2"),
        (other, 0.0, "w1 and w3"),
        (apart, 1e-7 * length, "w2 and w3"),
    ):
        if distance <= least:
            raise ValueError(f"{pair} are the same weights: no plane goes through them; use segment()")
    along = gram[0, 1].item() / length
    height = math.sqrt(max(other**2 - along**2, 0.0))
    if height <= max(0.5 * places.rounding(), 1e-7 * other):
        raise ValueError(
            "w1, w2 and w3 lie on a line, to within their rounding: no plane goes through them; use segment(), whose "
            "extend= reaches beyond either end"
        )
    return (0.0, 0.0), (length, 0.0), (along, height)


def _shares(corners: Sequence[tuple[float, float]], point: tuple[float, float]) -> tuple[float, float, float]:
    """The shares of the three corners in a point."""
    _, (length, _), (along, height) = corners
    third = point[1] / height
    second = (point[0] - third * along) / length
    return 1 - second - third, second, third


def _at(
    model: nn.Module,
    places: Places,
    shares: Sequence[float],
    loader: Loader,
    renew: Callable[[], None],
    loss: Loss | None,
    advance: Callable[[], None],
) -> Evaluation:
    """What is measured at Σ c_k w_k."""
    places.put(shares)
    renew()
    found = measure(model, loader, loss)
    advance()
    return found


def _renewal(model: nn.Module, refresh: Refresh | None) -> Callable[[], None]:
    """What brings the statistics up to date; to be asked for while the model is in the modes that it came in.

    Those tell a layer that does not train from the others.
    """
    if refresh is None:
        return lambda: None
    if not callable(refresh):
        repeatable(refresh)
    modes = {module: module.training for module in model.modules()}

    def renew() -> None:
        for module, mode in modes.items():
            module.training = mode
        with undisturbed(devices(model)):  # the same batches at every point, if they are shuffled
            if callable(refresh):
                refresh(model)
            else:
                from steppe.averaging.batch_norm import reestimate_batch_norm

                reestimate_batch_norm(model, refresh)
        model.eval()

    return renew


def _spread(low: float, high: float, points: int) -> list[float]:
    """Equal distances from low to high, which are both there to the bit."""
    step = (high - low) / (points - 1)
    return [low + step * i for i in range(points - 1)] + [high]


def _widened(low: float, high: float, margin: float) -> tuple[float, float]:
    return low - margin * (high - low), high + margin * (high - low)


def _finite(distance: float) -> None:
    if not math.isfinite(distance):
        raise ValueError("the weights are not finite: there is nothing between them")
