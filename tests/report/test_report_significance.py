"""Tests between methods, against scipy called directly, against counting all signs, and against Holm by brute force."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import write_run
from scipy import stats

from steppe.errors import SteppeError
from steppe.report import load_runs, summarise
from steppe.report.significance import Family, Pair, family, holm, paired_t, signed_rank

P = st.lists(st.floats(0, 1) | st.none(), max_size=8)


def rejected_by_the_procedure(p: list[float], level: float) -> set[int]:
    """Holm's procedure as he states it: in order of p, reject while p is at most level / (tests that are left)."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    found = set()
    for rank, place in enumerate(order):
        if p[place] > level / (len(p) - rank):
            break
        found.add(place)
    return found


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_s_values_reject_what_his_procedure_rejects(p: list[float], level: float) -> None:
    adjusted = holm(p)
    wanted = rejected_by_the_procedure(p, level)
    for place, value in enumerate(adjusted):
        assert value is not None
        if abs(value - level) > 1e-9:
            assert (value <= level) == (place in wanted)


@given(P)
def test_holm_leaves_out_what_is_no_test_and_keeps_the_places(p: list[float | None]) -> None:
    made = [value for value in p if value is not None]
    adjusted = holm(p)
    assert [value is None for value in adjusted] == [value is None for value in p]
    assert [value for value in adjusted if value is not None] == holm(made)
    assert all(new is None or (old is not None and old <= new <= 1) for new, old in zip(adjusted, p, strict=True))


def test_holm_by_hand() -> None:
    # 0.01·3 = 0.03, 0.02·2 = 0.04, 0.03·1 = 0.03 → not below the one before
    assert holm([0.03, 0.01, 0.02]) == [pytest.approx(0.04), pytest.approx(0.03), pytest.approx(0.04)]
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(-1, 1).filter(lambda d: abs(d) > 1e-3), min_size=1, max_size=9, unique_by=lambda d: abs(d)))
def test_the_signed_rank_test_counts_all_signs(differences: list[float]) -> None:
    d = np.array(differences)
    ranks = stats.rankdata(np.abs(d))
    observed = abs(float((ranks * np.sign(d)).sum()))
    sums = [abs(sum(s * r for s, r in zip(signs, ranks, strict=True))) for signs in product((-1, 1), repeat=len(d))]
    assert signed_rank(d) == pytest.approx(np.mean([value >= observed - 1e-9 for value in sums]))


@pytest.mark.parametrize("d", [[0.1, 0.1, -0.1, 0.2, 0.3], [0.1, 0.0, 0.0, 0.2, 0.2, -0.1, 0.4]])
def test_ties_count_all_signs_too_and_zeros_are_left_out(d: list[float]) -> None:
    rest = np.array([value for value in d if value])
    ranks = stats.rankdata(np.abs(rest))
    observed = abs(float((ranks * np.sign(rest)).sum()))
    sums = [abs(sum(s * r for s, r in zip(signs, ranks, strict=True))) for signs in product((-1, 1), repeat=len(rest))]
    assert signed_rank(np.array(d)) == pytest.approx(np.mean([value >= observed - 1e-9 for value in sums]))


def test_what_cannot_be_tested() -> None:
    assert signed_rank(np.array([])) is None
    assert signed_rank(np.zeros(4)) == 1.0
    assert paired_t(np.array([0.1])) == (None, None, None)
    assert paired_t(np.array([0.1, 0.1, 0.1])) == (None, None, None)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12).filter(lambda d: max(d) - min(d) > 1e-6))
def test_the_paired_t_test_is_scipy_s(differences: list[float]) -> None:
    d = np.array(differences)
    low, high, p = paired_t(d)
    assert p == pytest.approx(float(stats.ttest_rel(d + 3, np.full(len(d), 3.0)).pvalue), abs=1e-9)
    wanted = stats.t.interval(0.95, len(d) - 1, loc=d.mean(), scale=stats.sem(d))
    assert (low, high) == (pytest.approx(wanted[0], abs=1e-9), pytest.approx(wanted[1], abs=1e-9))


ACCURACY = {  # method -> data set, held-out domain -> seeds
    "erm": {("a", "line"): [0.50, 0.52], ("a", "noto"): [0.40, 0.44], ("b", "line"): [0.30, 0.31, 0.35]},
    "sam": {("a", "line"): [0.53, 0.52], ("a", "noto"): [0.41, 0.49], ("b", "line"): [0.33, 0.30]},
    "disam": {("a", "line"): [0.57], ("a", "noto"): [0.49, 0.48]},
}


def store(root: Path) -> Path:
    for method, cells in ACCURACY.items():
        for (dataset, domain), values in cells.items():
            for seed, accuracy in enumerate(values):
                write_run(root, method, domain, seed, accuracy=accuracy, dataset=dataset)
    return root


def pair(found: Family, first: str, second: str) -> Pair:
    return next(item for item in found.pairs if (item.first, item.second) == (first, second))


def test_pairs_over_cells_are_means_over_the_shared_seeds(tmp_path: Path) -> None:
    comparisons = summarise(load_runs(store(tmp_path))).comparisons
    found = family(comparisons)
    assert [(item.first, item.second) for item in found.pairs] == [("erm", "sam"), ("erm", "disam"), ("sam", "disam")]
    between = pair(found, "erm", "sam")
    d = [0.51 - 0.525, 0.42 - 0.45, (0.30 + 0.31) / 2 - (0.33 + 0.30) / 2]  # seed 2 of b has no partner
    assert (between.n, between.zeros) == (3, 0)
    assert between.difference == pytest.approx(np.mean(d))
    assert between.t.p == pytest.approx(float(stats.ttest_1samp(d, 0).pvalue))
    assert between.wilcoxon.p == pytest.approx(float(stats.wilcoxon(np.round(d, 12)).pvalue)) == 0.25
    assert pair(found, "erm", "disam").n == 2
    assert pair(found, "erm", "disam").difference == pytest.approx(np.mean([0.50 - 0.57, 0.42 - 0.485]))
    assert [item.t.holm for item in found.pairs] == holm([item.t.p for item in found.pairs])
    assert [item.wilcoxon.holm for item in found.pairs] == holm([item.wilcoxon.p for item in found.pairs])


def test_pairs_over_runs_are_the_single_differences(tmp_path: Path) -> None:
    comparisons = summarise(load_runs(store(tmp_path))).comparisons
    between = pair(family(comparisons, unit="runs"), "erm", "sam")
    d = np.round([0.50 - 0.53, 0.0, 0.40 - 0.41, 0.44 - 0.49, 0.30 - 0.33, 0.31 - 0.30], 12)
    assert (between.n, between.zeros) == (6, 1)
    assert between.difference == pytest.approx(d.mean())
    assert between.t.p == pytest.approx(float(stats.ttest_1samp(d, 0).pvalue))
    assert between.smallest_p == 2 / 2**5
    assert (between.low, between.high) == tuple(pytest.approx(value) for value in paired_t(d)[:2])


def test_against_one_method_there_are_fewer_tests(tmp_path: Path) -> None:
    comparisons = summarise(load_runs(store(tmp_path))).comparisons
    found = family(comparisons, against="erm")
    assert [(item.first, item.second) for item in found.pairs] == [("sam", "erm"), ("disam", "erm")]
    assert found.against == "erm"
    everything = family(comparisons)
    one, other = pair(found, "sam", "erm"), pair(everything, "erm", "sam")
    assert one.difference == pytest.approx(-other.difference)
    assert one.t.p == pytest.approx(other.t.p)
    assert one.t.holm is not None
    assert other.t.holm is not None
    assert one.t.holm <= other.t.holm


def test_a_method_that_is_not_there_is_named(tmp_path: Path) -> None:
    comparisons = summarise(load_runs(store(tmp_path))).comparisons
    with pytest.raises(SteppeError, match="unknown method 'disan'; did you mean 'disam'"):
        family(comparisons, against="disan")


def test_methods_without_anything_in_common_are_no_pair(tmp_path: Path) -> None:
    write_run(tmp_path, "erm", "line", 0)
    write_run(tmp_path, "sam", "line", 1)
    write_run(tmp_path, "disam", "noto", 0)
    found = family(summarise(load_runs(tmp_path)).comparisons)
    assert found.pairs == ()
    assert found.remarks == ()


@pytest.mark.parametrize("cells", [1, 4, 5, 6, 7, 8])
def test_too_few_pairs_are_said_to_be_too_few(tmp_path: Path, cells: int) -> None:
    for number in range(cells):
        for method, gain in (("erm", 0.0), ("sam", 0.1 + number / 100)):
            write_run(tmp_path, method, f"d{number}", accuracy=0.4 + gain, domains=[f"d{i}" for i in range(9)])
    found = family(summarise(load_runs(tmp_path)).comparisons)
    (only,) = found.pairs
    assert only.smallest_p == pytest.approx(min(1, 2 / 2**cells))
    assert only.wilcoxon.p == pytest.approx(only.smallest_p)  # all of one sign: nothing smaller is possible
    assert any("no signed-rank test can reach 0.05" in remark for remark in found.remarks) == (cells < 6)
    assert only.wilcoxon.significant == (cells >= 6)


def test_corrected_for_many_tests_six_pairs_are_too_few_as_well(tmp_path: Path) -> None:
    methods = ("erm", "sam", "asam", "disam")
    for place, number in product(range(len(methods)), range(6)):
        accuracy = 0.2 + place / 10 + place * number / 100
        write_run(tmp_path, methods[place], f"d{number}", accuracy=accuracy, domains=[f"d{i}" for i in range(6)])
    found = family(summarise(load_runs(tmp_path)).comparisons)
    assert len(found.pairs) == 6
    assert not any(item.wilcoxon.significant for item in found.pairs)
    assert any("Corrected for 6 tests" in remark for remark in found.remarks)


def test_equal_methods_differ_in_nothing(tmp_path: Path) -> None:
    for method, domain in product(("erm", "sam"), ("line", "noto")):
        write_run(tmp_path, method, domain, accuracy=0.5)
    found = family(summarise(load_runs(tmp_path)).comparisons)
    (only,) = found.pairs
    assert (only.zeros, only.wilcoxon.p, only.t.p) == (2, 1.0, None)
    assert "No pair differs, so there is nothing to test." in found.remarks


def test_very_many_methods_are_tested_against_the_first(tmp_path: Path) -> None:
    for number in range(13):
        for domain in ("line", "noto"):
            write_run(tmp_path, "erm" if number == 7 else f"m{number:02}", domain, accuracy=0.3 + number / 100)
    found = family(summarise(load_runs(tmp_path)).comparisons)
    assert found.against == "erm"
    assert len(found.pairs) == 12


def test_the_order_of_cells_and_seeds_changes_nothing(tmp_path: Path) -> None:
    runs = load_runs(store(tmp_path))
    reference = family(summarise(runs).comparisons)
    for order in list(permutations(range(3)))[1:]:
        shuffled = [run for place in order for run in list(runs)[place::3]]
        found = family(summarise(shuffled).comparisons)
        for item in reference.pairs:
            other = pair(found, item.first, item.second)
            assert other.t.p == pytest.approx(item.t.p)
            assert other.wilcoxon.holm == pytest.approx(item.wilcoxon.holm)
