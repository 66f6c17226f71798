"""How accuracy depends on a hyper-parameter: every number that the runs of an algorithm differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from steppe.report.settings import HYPER, plain, settings_key, short
from steppe.report.statistics import Comparison, Estimate, Method


@dataclass(frozen=True)
class Point:
    """One value of the parameter: accuracy on each held-out domain and on average, mean and standard error over
    seeds."""

    value: float
    held_out: Mapping[str, Estimate]
    average: Estimate | None
    method: str


@dataclass(frozen=True)
class Line:
    """The methods that differ in this parameter and in nothing else; in order of its value.

    ``fixed`` names what sets them apart from another line of the same algorithm, and is empty for a lone line.
    """

    algorithm: str
    fixed: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Accuracy against one parameter.

    Attributes:
        parameter: as a person calls it: ``rho``, ``lr``.
        lines: of two points or more each.
        single: methods that have no partner which differs in this parameter alone (draws of a search): points that no
            line may join, because something else differs too.
        logarithmic: whether the values lie so that a logarithmic axis shows them best.
    """

    parameter: str
    lines: tuple[Line, ...]
    single: tuple[Line, ...]
    logarithmic: bool


def sensitivities(comparison: Comparison) -> tuple[Sensitivity, ...]:
    """Every parameter in which methods of one algorithm differ, in the order of the settings."""
    found: dict[str, list[Line]] = {}
    for algorithm in dict.fromkeys(method.algorithm for method in comparison.methods):
        methods = [method for method in comparison.methods if method.algorithm == algorithm]
        for name in _varying(methods):
            shown = short(name, methods[0].settings)
            found.setdefault(shown.rpartition(".")[2], []).extend(_lines(algorithm, name, methods))
    return tuple(_sensitivity(parameter, lines) for parameter, lines in found.items())


def _varying(methods: Sequence[Method]) -> Iterator[str]:
    """The settings that are numbers in all of the methods and not the same in all."""
    names = dict.fromkeys(name for method in methods for name in method.settings)
    for name in names:
        values = [method.settings.get(name) for method in methods]
        numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if len(numbers) == len(values) and len(set(numbers)) > 1:
            yield name


def _lines(algorithm: str, name: str, methods: Sequence[Method]) -> list[Line]:
    groups: dict[str, list[Method]] = {}
    for method in methods:
        rest = {other: value for other, value in method.settings.items() if other != name}
        groups.setdefault(settings_key(rest), []).append(method)
    others = [other for other in _differing(methods) if other != name]
    lines = []
    for members in groups.values():
        settings = members[0].settings
        fixed = ", ".join(f"{short(other, settings)}={plain(settings.get(other))}" for other in others)
        points = sorted((_point(name, member) for member in members), key=lambda point: point.value)
        lines.append(Line(algorithm, fixed if len(groups) > 1 else "", tuple(points)))
    return lines


def _differing(methods: Sequence[Method]) -> list[str]:
    names = dict.fromkeys(name for method in methods for name in method.settings)
    return [name for name in names if len({plain(method.settings.get(name)) for method in methods}) > 1]


def _point(name: str, method: Method) -> Point:
    return Point(
        value=float(method.settings[name]),
        held_out={domain: cell.held_out for domain, cell in method.cells.items()},
        average=method.average,
        method=method.name,
    )


def _sensitivity(parameter: str, lines: Sequence[Line]) -> Sensitivity:
    values = [point.value for line in lines for point in line.points]
    return Sensitivity(
        parameter=parameter.removeprefix(f"{HYPER}."),
        lines=tuple(line for line in lines if len(line.points) > 1),
        single=tuple(line for line in lines if len(line.points) == 1),
        logarithmic=min(values) > 0 and max(values) >= 5 * min(values),
    )
