"""Sensitivity: which methods a line joins, and which it must not."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_runs import write_run

from steppe.report import load_runs, summarise
from steppe.report.sensitivity import Sensitivity, sensitivities


def found(root: Path) -> dict[str, Sensitivity]:
    (comparison,) = summarise(load_runs(root)).comparisons
    return {item.parameter: item for item in sensitivities(comparison)}


def test_a_line_over_rho_with_its_spread(tmp_path: Path) -> None:
    for rho, gain in ((0.5, 0.1), (0.05, 0.0), (0.2, 0.2)):
        for seed in range(3):
            for domain, base in (("fluent", 0.5), ("line", 0.3)):
                accuracy = base + gain + seed / 100
                write_run(tmp_path, "sam", domain, seed, accuracy=accuracy, hyper={"sam.rho": rho})
    result = found(tmp_path)
    assert list(result) == ["rho"]
    (line,) = result["rho"].lines
    assert result["rho"].single == ()
    assert result["rho"].logarithmic
    assert (line.algorithm, line.fixed) == ("sam", "")
    assert [point.value for point in line.points] == [0.05, 0.2, 0.5]
    assert [point.held_out["line"].mean for point in line.points] == pytest.approx([0.31, 0.51, 0.41])
    assert [point.average.mean for point in line.points if point.average] == pytest.approx([0.41, 0.61, 0.51])
    assert all(point.held_out["line"].error == pytest.approx(0.01 / 3**0.5) for point in line.points)


def test_a_grid_has_a_line_for_each_value_of_the_other(tmp_path: Path) -> None:
    for rho in (0.05, 0.1):
        for lam in (0.1, 0.3, 0.5):
            write_run(tmp_path, "disam", "line", accuracy=rho + lam, hyper={"disam.rho": rho, "disam.lam": lam})
    result = found(tmp_path)
    assert {line.fixed for line in result["rho"].lines} == {"lam=0.1", "lam=0.3", "lam=0.5"}
    assert [len(line.points) for line in result["rho"].lines] == [2, 2, 2]
    assert {line.fixed for line in result["lam"].lines} == {"rho=0.05", "rho=0.1"}
    assert not result["rho"].logarithmic


def test_draws_that_differ_in_everything_are_joined_by_no_line(tmp_path: Path) -> None:
    for number, (lr, rho) in enumerate(((1e-5, 0.02), (3e-5, 0.3), (2e-4, 0.07))):
        write_run(tmp_path, "sam", "line", accuracy=0.3 + number / 10, lr=lr, hyper={"rho": rho})
    result = found(tmp_path)
    for parameter in ("lr", "rho"):
        assert result[parameter].lines == ()
        assert len(result[parameter].single) == 3


def test_algorithms_are_never_joined_and_a_shared_parameter_is_one_panel(tmp_path: Path) -> None:
    for algorithm in ("sam", "disam+sagm"):
        for rho in (0.05, 0.1):
            hyper = {"rho": rho} if algorithm == "sam" else {"rho": rho, "disam.lam": 0.1}
            write_run(tmp_path, algorithm, "line", accuracy=rho, hyper=hyper)
    write_run(tmp_path, "erm", "line", accuracy=0.4)
    result = found(tmp_path)
    assert list(result) == ["rho"]
    assert [line.algorithm for line in result["rho"].lines] == ["sam", "disam+sagm"]


def test_what_is_no_number_or_does_not_vary_is_no_parameter(tmp_path: Path) -> None:
    write_run(tmp_path, "sam", "line", optimizer="adam", pretrained=True)
    write_run(tmp_path, "sam", "line", optimizer="sgd", pretrained=False)
    assert found(tmp_path) == {}
