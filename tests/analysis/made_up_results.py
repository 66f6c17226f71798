"""Results of every instrument, made by hand: what a figure has to show is known without a model."""

from __future__ import annotations

import math

import torch

from steppe.analysis import CKA, Evaluation, LocalEntropy, Pairwise, Plane, Segment
from steppe.analysis.figures import Section, cka, diversity, entropy, matrix, plane, segment

EVIL = "<img src=x onerror=alert(1)>%{x}</script><b>bold"
"""A name that must stay text."""


def pairwise(n: int = 5) -> Pairwise:
    places = torch.arange(n, dtype=torch.float64)
    cosines = torch.cos(0.4 * (places[:, None] - places[None, :]))
    cosines[0] = cosines[:, 0] = torch.nan
    return Pairwise((places[:, None] - places[None, :]).abs() / 3, cosines, places / 3, 1234)


def comparison(layers: int = 4, other: int | None = None) -> CKA:
    names = tuple(f"backbone.blocks.{i}.conv_pointwise_linear" for i in range(layers))
    across = names if other is None else tuple(f"layer{i}" for i in range(other))
    values = torch.linspace(-0.01, 1, layers * len(across), dtype=torch.float64).view(layers, len(across))
    return CKA(values, names, across, 640, 10)


def local_entropy(value: float = 0.4, sigma: float = 0.1) -> LocalEntropy:
    return LocalEntropy(value, 0.02, (value, value + 0.1), sigma, value - 0.1)


def line(judged: bool = True, broken: bool = False) -> Segment:
    positions = tuple(i / 4 for i in range(-1, 6))
    loss = tuple(math.inf if broken and t == 1.25 else 0.3 + (t - 0.5) ** 2 for t in positions)
    accuracy = tuple(0.9 - abs(t - 0.5) / 2 for t in positions) if judged else None
    return Segment(positions, loss, accuracy, 2.5, Evaluation(0.55, 0.65, 10), Evaluation(0.55, 0.65, 10))


def ground(height: float = 3.0, *, judged: bool = True, broken: bool = False, steep: float = 1.0) -> Plane:
    x, y = torch.linspace(-1, 5, 9, dtype=torch.float64), torch.linspace(-0.5, height + 0.5, 8, dtype=torch.float64)
    loss = 0.2 + steep * ((x[None, :] - 2) ** 2 + (y[:, None] - 1) ** 2)
    if broken:
        loss[0, :2] = torch.inf
        loss[3, 4] = torch.nan
    at = tuple(Evaluation(0.2 + i / 10, 0.9 - i / 10 if judged else None, 10) for i in range(3))
    corners = ((0.0, 0.0), (4.0, 0.0), (1.5, height))
    accuracy = 1 / (1 + loss.nan_to_num(9, 9)) if judged else None
    return Plane(tuple(x.tolist()), tuple(y.tolist()), loss, accuracy, corners, at)


def sections() -> list[Section]:
    """A page with everything on it: every figure, names that are long or evil, what is not finite."""
    names = ("erm", "sam", "lookahead", EVIL)
    over_steps = {name: {step: pairwise(3 + step // 100 + i) for step in (100, 200)} for i, name in enumerate(names)}
    at_once = {name: local_entropy(0.3 + i / 10) for i, name in enumerate(names)}
    over_sigma = {n: [local_entropy(0.3 + i / 10 + s, s) for s in (0.01, 0.1, 1)] for i, n in enumerate(names)}
    return [
        Section(
            "How far the weights travel",
            {
                "Distances": matrix(pairwise(11), steps=range(0, 1100, 100)),
                "Cosines": matrix(pairwise(11), "cosine"),
                "Mean distance": diversity(over_steps),
                f"Mean cosine of {EVIL}": diversity(over_steps, "cosine", at="learning rate"),
            },
            f"One paragraph with {EVIL}.\n\nAnother & more.",
        ),
        Section(
            "How alike they are",
            {"Layers": cka(comparison(30), ("sam", EVIL)), "Some with others": cka(comparison(3, 9))},
        ),
        Section("The ground", {"At one σ": entropy(at_once), "Over σ": entropy(over_sigma)}),
        Section(
            "Between them",
            {
                "Two lines": segment({"sam": line(), EVIL: line(broken=True)}, ends=(EVIL, "last")),
                "No classes": segment(line(judged=False)),
                "Loss": plane(ground(broken=True), names=("w₁", EVIL, "average")),
                "Accuracy": plane(ground(), "accuracy"),
                "Flat triangle": plane(ground(0.05)),
                "High triangle, shallow": plane(ground(40.0, steep=1e-4)),
            },
        ),
        Section("Words alone", text="Nothing to see."),
    ]
