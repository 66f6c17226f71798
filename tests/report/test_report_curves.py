"""The loss curves, against numpy and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_up_runs import write_run

from steppe.report import Run, UnreadableFile, load_runs, summarise
from steppe.report.curves import MOST_POINTS, curves, domain_losses, mean_curve, shift_and_scale, thin

VALUES = arrays(np.float64, st.integers(1, 1500), elements=st.floats(-100, 100))


def write_losses(folder: Path, losses: dict[int, dict[str, float | None]]) -> None:
    lines = [
        {"kind": "train", "step": step, "loss": 1.0, "domain_loss": by_domain} for step, by_domain in losses.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def run_with(root: Path, losses: dict[int, dict[str, float | None]], seed: int = 0) -> Run:
    folder = write_run(root, seed=seed)
    write_losses(folder, losses)
    return next(run for run in load_runs(root) if run.path == folder)


def test_the_mean_over_seeds_at_the_steps_all_have(tmp_path: Path) -> None:
    run_with(tmp_path, {10: {"noto": 2.0, "fluent": 1.0}, 20: {"noto": 1.0, "fluent": 0.5}, 30: {"noto": 0.5}}, seed=0)
    run_with(tmp_path, {10: {"noto": 4.0, "fluent": 2.0}, 20: {"noto": 2.0, "fluent": 1.5}}, seed=1)
    (comparison,) = summarise(load_runs(tmp_path)).comparisons
    found, problems = curves(comparison)
    assert problems == []
    assert [(curve.domain, curve.steps, curve.loss) for curve in found] == [
        ("fluent", (10, 20), (1.5, 1.0)),
        ("noto", (10, 20), (3.0, 1.5)),
    ]
    assert all(curve.scaled == (1.0, 0.0) and len(curve.runs) == 2 for curve in found)
    assert {curve.held_out for curve in found} == {"line"}


def test_losses_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    run = run_with(tmp_path, {10: {"noto": float("nan"), "fluent": 1.0}, 20: {"noto": None, "fluent": 0.5}})
    assert domain_losses(run) == {"fluent": {10: 1.0, 20: 0.5}}


def test_unreadable_metrics_are_named_and_the_other_seeds_shown(tmp_path: Path) -> None:
    run_with(tmp_path, {10: {"noto": 2.0}}, seed=0)
    broken = write_run(tmp_path, seed=1)
    (broken / "metrics.jsonl").write_text("{")
    (comparison,) = summarise(load_runs(tmp_path)).comparisons
    found, problems = curves(comparison)
    assert [item.path for item in problems] == [broken / "metrics.jsonl"]
    assert [curve.loss for curve in found] == [(2.0,)]
    assert len(found[0].runs) == 1


def test_a_training_line_without_domains_is_an_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    (run,) = load_runs(tmp_path)
    with pytest.raises(UnreadableFile, match="domain_loss"):
        domain_losses(run)


@given(VALUES)
def test_shift_and_scale_spans_zero_to_one(values: np.ndarray) -> None:
    scaled = shift_and_scale(values)
    assert scaled.min() == 0
    if values.max() > values.min():
        assert scaled.max() == 1
        np.testing.assert_allclose(scaled, np.interp(values, [values.min(), values.max()], [0, 1]), atol=1e-12)
    else:
        assert not scaled.any()


@given(VALUES, st.integers(1, 300))
def test_thinning_keeps_the_end_and_averages_everything_in_between(values: np.ndarray, most: int) -> None:
    steps = np.arange(1, values.size + 1, dtype=np.float64)
    kept_steps, kept = thin(steps, values, most)
    assert kept.size == kept_steps.size <= most
    assert kept_steps[-1] == values.size
    ends = kept_steps.astype(int)
    expected = [values[start:end].mean() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    np.testing.assert_allclose(kept, expected, atol=1e-9)


def test_seeds_without_a_common_step_give_no_curve() -> None:
    steps, values = mean_curve([{10: 1.0}, {20: 2.0}])
    assert steps.size == values.size == 0


def test_a_long_run_is_thinned(tmp_path: Path) -> None:
    run_with(tmp_path, {step: {"noto": 1.0 / step} for step in range(1, 1001)})
    (comparison,) = summarise(load_runs(tmp_path)).comparisons
    ((curve,), _) = curves(comparison)
    assert len(curve.steps) <= MOST_POINTS
    assert curve.steps[-1] == 1000
