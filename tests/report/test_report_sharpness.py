"""Sharpness over training: what runs measured, averaged over seeds as factors are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_runs import write_benchmark, write_run

from steppe.report import load_runs, summarise
from steppe.report.sharpness import SharpnessCurve, sharpness_curves


def measure(folder: Path, values: dict[int, float | None]) -> None:
    lines = [
        {"kind": "eval", "step": step, "accuracy": {}, "gradient_variance": value} for step, value in values.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def curves(root: Path) -> list[SharpnessCurve]:
    (comparison,) = summarise(load_runs(root)).comparisons
    return sharpness_curves(comparison)


def test_the_geometric_mean_over_seeds_at_shared_steps(tmp_path: Path) -> None:
    for seed, values in enumerate(({50: 1.0, 100: 4.0, 150: 9.0}, {50: 100.0, 100: 1.0})):
        measure(write_run(tmp_path, "sam", "line", seed), values)
    (curve,) = curves(tmp_path)
    assert (curve.method, curve.held_out, curve.steps) == ("sam", "line", (50, 100))
    assert curve.values == pytest.approx((10.0, 2.0))
    assert len(curve.runs) == 2


def test_runs_that_did_not_measure_it_have_no_curve(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=2)
    assert curves(tmp_path) == []
    measure(write_run(tmp_path, "asam", "line", 0), {50: 2.0, 100: None, 150: 0.0})
    write_run(tmp_path, "asam", "line", 1)
    (curve,) = curves(tmp_path)
    assert (curve.method, curve.steps, curve.values) == ("asam", (50,), (pytest.approx(2.0),))
