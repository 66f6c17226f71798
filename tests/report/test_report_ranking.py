"""The answer: the right method, and no more certainty than the runs give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import write_run
from scipy import stats

from steppe.report import load_runs, summarise
from steppe.report.ranking import Answer, answer, names, percent, seconds, signed


def answer_to(root: Path, accuracies: Mapping[str, Sequence[float]], held_out: str = "line") -> Answer:
    for method, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            write_run(root, method, held_out, seed, accuracy=accuracy)
    (comparison,) = summarise(load_runs(root)).comparisons
    return answer(comparison)


def test_the_best_has_the_highest_average_over_domains(tmp_path: Path) -> None:
    for domain, sam, disam in (("fluent", 0.9, 0.7), ("line", 0.2, 0.5)):
        write_run(tmp_path, "sam", domain, accuracy=sam)
        write_run(tmp_path, "disam", domain, accuracy=disam)
    result = answer_to(tmp_path, {})
    assert [method.name for method in result.ranking] == ["disam", "sam"]
    assert "disam held up best" in result.headline
    assert "60.0\N{NO-BREAK SPACE}%" in result.headline


def test_one_seed_is_said_to_be_no_evidence_and_shows_no_spread(tmp_path: Path) -> None:
    result = answer_to(tmp_path, {"erm": [0.3], "sam": [0.6]})
    assert "in a single seed" in result.headline
    assert "±" not in result.headline + "".join(result.caveats)
    assert any("not evidence" in caveat for caveat in result.caveats)


@pytest.mark.parametrize(("ahead", "close"), [(0.01, True), (0.02, True), (0.03, False)])
def test_a_single_seed_s_lead_of_two_pictures_is_too_close_to_call(tmp_path: Path, ahead: float, close: bool) -> None:
    # One picture of a hundred in each domain is a hundredth of the average.
    for domain, base in (("fluent", 0.7), ("line", 0.3)):
        write_run(tmp_path, "erm", domain, accuracy=base - 0.2)
        write_run(tmp_path, "sam", domain, accuracy=base)
        write_run(tmp_path, "disam", domain, accuracy=base + ahead)
    headline = answer_to(tmp_path, {}).headline
    assert ("disam and sam are too close to call in a single seed" in headline) == close
    assert ("held up best" in headline) == (not close)
    assert f"{50 + 100 * ahead:.1f}" in headline


def test_several_seeds_are_judged_by_their_spread_and_not_by_pictures(tmp_path: Path) -> None:
    headline = answer_to(tmp_path, {"erm": [0.30, 0.40, 0.50], "sam": [0.31, 0.411, 0.509]}).headline
    assert "sam held up best" in headline


def test_a_tie_as_printed_is_called_one(tmp_path: Path) -> None:
    result = answer_to(tmp_path, {"erm": [0.2], "sam": [0.50001], "disam": [0.50002]})
    assert {method.name for method in result.best} == {"sam", "disam"}
    assert "held up equally well" in result.headline
    assert "best" not in result.headline


def test_a_clear_lead(tmp_path: Path) -> None:
    result = answer_to(tmp_path, {"erm": [0.30, 0.31, 0.29], "sam": [0.52, 0.50, 0.51]})
    lead = result.leads[0]
    assert lead.certain
    assert lead.difference.mean == pytest.approx(0.21)
    low, high = stats.t.interval(0.95, df=2, loc=0.21, scale=stats.sem([0.22, 0.19, 0.22]))
    assert (lead.low, lead.high) == (pytest.approx(low), pytest.approx(high))
    assert result.headline.endswith("sam held up best: 51.0 ± 0.6\N{NO-BREAK SPACE}% on line.")
    assert any("more than the seeds explain" in caveat for caveat in result.caveats)


def test_a_lead_within_the_noise_is_not_sold_as_one(tmp_path: Path) -> None:
    result = answer_to(tmp_path, {"erm": [0.50, 0.60, 0.40], "sam": [0.55, 0.50, 0.51]})
    assert not result.leads[0].certain
    assert "seeds alone could explain" in result.headline
    assert any("less than the standard error" in caveat for caveat in result.caveats)


def test_the_lead_is_paired_by_seed(tmp_path: Path) -> None:
    # Seeds differ by tens of points, methods by two in every seed: paired, that is a clear lead.
    result = answer_to(tmp_path, {"erm": [0.30, 0.50, 0.70], "sam": [0.32, 0.521, 0.719]})
    assert result.leads[0].certain
    assert result.leads[0].difference.error == pytest.approx(float(stats.sem([0.02, 0.021, 0.019])))


def test_equal_differences_prove_nothing(tmp_path: Path) -> None:
    result = answer_to(tmp_path, {"erm": [0.25, 0.5], "sam": [0.5, 0.75]})
    assert result.leads[0].low is None
    assert not result.leads[0].certain


def test_methods_that_lack_a_domain_are_named_and_not_ranked(tmp_path: Path) -> None:
    write_run(tmp_path, "erm", "fluent", accuracy=0.5)
    result = answer_to(tmp_path, {"erm": [0.3], "disam": [0.9]})
    assert [method.name for method in result.ranking] == ["erm"]
    assert [method.name for method in result.unranked] == ["disam"]
    assert any("Not ranked" in caveat and "disam" in caveat for caveat in result.caveats)
    assert "nothing to compare it with" in result.headline


def test_no_complete_method_gives_no_answer(tmp_path: Path) -> None:
    write_run(tmp_path, "erm", "fluent", accuracy=0.5)
    result = answer_to(tmp_path, {"disam": [0.9]})
    assert result.best == ()
    assert "no answer" in result.headline


def test_methods_that_were_not_trained_alike_are_pointed_out(tmp_path: Path) -> None:
    write_run(tmp_path, "erm", "line", accuracy=0.3, steps=100)
    write_run(tmp_path, "sam", "line", accuracy=0.5, steps=400)
    result = answer_to(tmp_path, {})
    assert any("Not like for like" in caveat and "steps (100, 400)" in caveat for caveat in result.caveats)


def test_own_hyper_parameters_are_no_unfairness(tmp_path: Path) -> None:
    result = answer_to(tmp_path, {"erm": [0.3], "sam": [0.4]})
    assert not any("like for like" in caveat for caveat in result.caveats)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=6, unique_by=percent))
def test_the_ranking_is_sorted(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("store")
    result = answer_to(root, {f"m{number}": [value] for number, value in enumerate(values)})
    means = [method.average.mean for method in result.ranking if method.average]
    assert means == sorted(values, reverse=True)
    assert result.best == result.ranking[:1]


def test_how_numbers_are_written() -> None:
    assert (percent(0.7431), percent(1), percent(0)) == ("74.3", "100.0", "0.0")
    assert (signed(0.0123), signed(-0.004)) == ("+1.2", "−0.4")
    assert [seconds(value) for value in (0.31, 0.6171, 12.0, 345.6)] == ["0.310", "0.617", "12.0", "346"]
    assert [names(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
