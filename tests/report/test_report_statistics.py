"""Means, standard errors and groups, against numbers worked out by other means."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import CONFIG, write_benchmark, write_run
from scipy import stats

from steppe.report import Summary, load_runs, summarise
from steppe.report.settings import differing, label, labels, settings_of
from steppe.report.statistics import Comparison, Method, estimate

FRACTIONS = st.floats(0, 1, allow_subnormal=False)


def summary_of(root: Path) -> Summary:
    return summarise(load_runs(root))


def only(root: Path) -> Comparison:
    (comparison,) = summary_of(root).comparisons
    return comparison


def by_name(comparison: Comparison) -> dict[str, Method]:
    return {method.name: method for method in comparison.methods}


@given(st.lists(FRACTIONS, min_size=2, max_size=20))
def test_mean_and_standard_error_are_those_of_scipy(values: list[float]) -> None:
    result = estimate(values, map(str, range(len(values))))
    assert result.error is not None
    assert result.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert result.error == pytest.approx(float(stats.sem(values)), abs=1e-12)
    assert result.n == len(values) == len(result.runs)


@given(FRACTIONS)
def test_one_seed_has_no_spread(value: float) -> None:
    assert estimate([value], ["a"]).error is None


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="nothing"):
        estimate([], [])


def test_three_seeds_by_hand(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.50, 0.53, 0.59)):
        write_run(tmp_path, "sam", "line", seed, accuracy=accuracy, everything=accuracy + 0.02, in_domain=0.8)
    (method,) = only(tmp_path).methods
    cell = method.cells["line"]
    # mean 0.54; deviations -0.04, -0.01, 0.05; sum of squares 0.0042; s = sqrt(0.0021); error = s / sqrt(3)
    assert cell.held_out.mean == pytest.approx(0.54)
    assert cell.held_out.error == pytest.approx(0.026457513)
    assert cell.everything.mean == pytest.approx(0.56)
    assert cell.in_domain.mean == pytest.approx(0.8)
    assert cell.in_domain.error == pytest.approx(0)
    by_seed = sorted(load_runs(tmp_path), key=lambda run: run.seed)
    assert cell.held_out.runs == tuple(run.id for run in by_seed)
    assert method.average == cell.held_out


@given(
    table=st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=1, max_size=5),
)
def test_the_average_over_domains_is_taken_seed_by_seed(
    table: list[tuple[float, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("store")
    for seed, (fluent, line) in enumerate(table):
        write_run(root, "sam", "fluent", seed, accuracy=fluent)
        write_run(root, "sam", "line", seed, accuracy=line)
    (method,) = only(root).methods
    assert method.average is not None
    by_seed = np.array(table).mean(axis=1)
    assert method.average.mean == pytest.approx(by_seed.mean(), abs=1e-12)
    if len(table) == 1:
        assert method.average.error is None
    else:
        assert method.average.error == pytest.approx(float(stats.sem(by_seed)), abs=1e-12)


def test_domains_with_different_seeds_have_a_mean_and_no_error(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "sam", "fluent", seed, accuracy=0.6 + 0.1 * seed)
    for seed in (1, 2, 3):
        write_run(tmp_path, "sam", "line", seed, accuracy=0.3)
    (method,) = only(tmp_path).methods
    assert method.average is not None
    assert method.average.mean == pytest.approx((0.65 + 0.3) / 2)
    assert method.average.error is None
    assert method.seeds == "2–3"


def test_a_missing_domain_leaves_no_average(tmp_path: Path) -> None:
    write_benchmark(tmp_path, ("erm", "sam"), ("fluent", "line"), seeds=2)
    write_run(tmp_path, "disam", "line", 0, accuracy=0.9)
    methods = by_name(only(tmp_path))
    assert methods["disam"].average is None
    assert methods["disam"].average_in_domain is None
    assert methods["erm"].average is not None


def test_runs_with_other_settings_are_never_averaged_together(tmp_path: Path) -> None:
    write_run(tmp_path, "disam", "line", 0, accuracy=0.4, hyper={"rho": 0.05, "lam": 0.1})
    write_run(tmp_path, "disam", "line", 1, accuracy=0.5, hyper={"rho": 0.05, "lam": 0.1})
    write_run(tmp_path, "disam", "line", 0, accuracy=0.9, hyper={"rho": 0.1, "lam": 0.1})
    write_run(tmp_path, "erm", "line", 0, accuracy=0.3)
    methods = by_name(only(tmp_path))
    assert list(methods) == ["erm", "disam (rho=0.05)", "disam (rho=0.1)"]
    assert methods["disam (rho=0.05)"].cells["line"].held_out.mean == pytest.approx(0.45)
    assert methods["disam (rho=0.1)"].cells["line"].held_out.n == 1


@pytest.mark.parametrize("name", sorted(set(CONFIG) - {"dataset", "algorithm", "held_out", "seed", "hyper"}))
def test_every_field_of_a_config_but_the_seed_separates(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, "sam", "line", 0, accuracy=0.4)
    write_run(tmp_path, "sam", "line", 1, accuracy=0.6, **{name: 7})
    numbers = [
        method.cells["line"].held_out.mean
        for comparison in summary_of(tmp_path).comparisons
        for method in comparison.methods
    ]
    assert sorted(numbers) == [0.4, 0.6]


def test_other_contents_and_other_splits_are_other_comparisons(tmp_path: Path) -> None:
    write_run(tmp_path, "sam", "line", 0)
    write_run(tmp_path, "sam", "line", 1, dataset_fingerprint="fedcba")
    assert [item.name for item in summary_of(tmp_path).comparisons] == [
        "emoji (contents 0123456789ab)",
        "emoji (contents fedcba)",
    ]
    write_run(tmp_path, "sam", "line", 2, split="domainbed", dataset="photos")
    write_run(tmp_path, "sam", "line", 3, split="strict", dataset="photos")
    assert [item.name for item in summary_of(tmp_path).comparisons][2:] == [
        "photos (split domainbed)",
        "photos (split strict)",
    ]


def test_order_of_methods_and_domains(tmp_path: Path) -> None:
    write_benchmark(tmp_path, ("zeta", "disam", "sam", "erm", "alpha"), ("line", "fluent"), seeds=1)
    comparison = only(tmp_path)
    assert [method.name for method in comparison.methods] == ["erm", "sam", "disam", "alpha", "zeta"]
    assert comparison.held_out == ("fluent", "line")
    assert comparison.domains == ("fluent", "noto", "twemoji", "line")


def test_seconds_are_medians_and_compared_only_on_the_same_hardware(tmp_path: Path) -> None:
    for seed, seconds in enumerate((0.2, 0.3, 0.9)):
        write_run(tmp_path, "erm", "line", seed, seconds_per_step=seconds)
        write_run(tmp_path, "sam", "line", seed, seconds_per_step=2 * seconds)
        write_run(tmp_path, "disam", "line", seed, result={"device": "cuda"})
        write_run(tmp_path, "asam", "line", seed, image_size=112)
    methods = by_name(only(tmp_path))
    assert methods["erm"].seconds_per_step == 0.3
    assert methods["sam"].times_baseline == pytest.approx(2)
    assert methods["disam"].times_baseline is None
    assert methods["asam"].times_baseline is None


def test_pictures_behind_a_number(tmp_path: Path) -> None:
    write_run(tmp_path, "erm", "line", 0, pictures=97)
    write_run(tmp_path, "erm", "noto", 0, pictures=97)
    write_run(tmp_path, "erm", "noto", 1, pictures=99)
    comparison = only(tmp_path)
    assert comparison.pictures("line") == "97"
    assert comparison.pictures("noto") == "97–99"


@given(st.dictionaries(st.sampled_from(["lr", "steps", "hyper.rho"]), st.sampled_from([1, 2.5, "x", None]), max_size=3))
def test_equal_settings_do_not_differ(settings: dict[str, object]) -> None:
    assert differing([settings, dict(reversed(settings.items()))]) == []


def test_drawn_numbers_are_as_short_as_tells_them_apart() -> None:
    groups = [({"lr": lr, "steps": 5}, ["lr"]) for lr in (1.0278547e-05, 1.0278999e-05, 0.05)]
    assert labels("sam", groups) == ["sam (lr=1.02785e-05)", "sam (lr=1.0279e-05)", "sam (lr=0.05)"]
    assert labels("sam", groups[1:]) == ["sam (lr=1.03e-05)", "sam (lr=0.05)"]
    nearly_equal = [({"lr": 0.1}, ["lr"]), ({"lr": 0.1 + 2**-56}, ["lr"])]
    assert len(set(labels("sam", nearly_equal))) == 2
    assert labels("sam", [({"lr": 0.1}, [])]) == ["sam"]


def test_labels() -> None:
    settings = settings_of({**CONFIG, "hyper": {"rho": 0.1, "lam": None}, "pretrained": False})
    names = ["hyper.rho", "pretrained", "backbone", "hyper.lam", "absent"]
    assert label("disam", settings, names) == "disam (rho=0.1, pretrained=false, backbone=efficientnet_lite0, lam=none)"
    assert label("erm", settings, []) == "erm"
    assert differing([{"a": 1}, {"a": 1.5, "b": 2}, {"a": 1, "b": 2}]) == ["a", "b"]
