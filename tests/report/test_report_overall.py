"""The table over data sets and the ranks, by hand and against scipy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import write_run
from scipy import stats

from steppe.report import load_runs, summarise
from steppe.report.overall import Overall, average_ranks, overall
from steppe.report.statistics import Comparison

CELLS = (("a", "line"), ("a", "noto"), ("b", "line"))
TABLE = {  # method -> accuracies of each cell, three seeds
    "erm": ([0.50, 0.53, 0.56], [0.40, 0.41, 0.45], [0.30, 0.31, 0.35]),
    "sam": ([0.55, 0.52, 0.58], [0.40, 0.46, 0.49], [0.29, 0.28, 0.30]),
    "disam": ([0.57, 0.58, 0.59], [0.48, 0.40, 0.38], [0.33, 0.30, 0.33]),
}


def comparisons(root: Path) -> tuple[Comparison, ...]:
    for method, cells in TABLE.items():
        for (dataset, domain), values in zip(CELLS, cells, strict=True):
            for seed, accuracy in enumerate(values):
                write_run(root, method, domain, seed, accuracy=accuracy, dataset=dataset)
    return summarise(load_runs(root)).comparisons


def row(found: Overall, name: str):  # type: ignore[no-untyped-def]
    return next(item for item in found.rows if item.name == name)


def test_domainbed_s_table(tmp_path: Path) -> None:
    found = overall(comparisons(tmp_path))
    assert found.datasets == ("a", "b")
    assert [item.name for item in found.rows] == ["erm", "sam", "disam"]
    for name, (line, noto, other) in TABLE.items():
        by_seed = np.mean([line, noto], axis=0)
        a, b = row(found, name).averages["a"], row(found, name).averages["b"]
        assert (a.mean, a.error) == (pytest.approx(by_seed.mean()), pytest.approx(stats.sem(by_seed)))
        assert (b.mean, b.error) == (pytest.approx(np.mean(other)), pytest.approx(stats.sem(other)))
        mean = row(found, name).mean
        assert mean.mean == pytest.approx((by_seed.mean() + np.mean(other)) / 2)  # data sets weigh the same
        assert mean.error == pytest.approx(math.hypot(stats.sem(by_seed), stats.sem(other)) / 2)
        assert mean.n == 3


def test_average_ranks_by_hand(tmp_path: Path) -> None:
    # means: a line .53 .55 .58 → ranks 3 2 1; a noto .42 .45 .42 → 2.5 1 2.5; b line .32 .29 .32 → 1.5 3 1.5
    ranks, cells = average_ranks(comparisons(tmp_path))
    assert cells == 3
    assert ranks == {
        "erm": pytest.approx((3 + 2.5 + 1.5) / 3),
        "sam": pytest.approx((2 + 1 + 3) / 3),
        "disam": pytest.approx((1 + 2.5 + 1.5) / 3),
    }
    assert sum(ranks.values()) == pytest.approx(6)


def test_a_method_that_lacks_a_cell_has_no_rank_and_changes_nobody_s(tmp_path: Path) -> None:
    before, _ = average_ranks(comparisons(tmp_path))
    write_run(tmp_path, "asam", "line", accuracy=0.99, dataset="a")
    found = overall(summarise(load_runs(tmp_path)).comparisons)
    assert row(found, "asam").rank is None
    assert row(found, "asam").mean is None
    assert {item.name: item.rank for item in found.rows if item.rank is not None} == before
    assert (found.cells, found.ranked) == (3, 3)


def test_a_missing_data_set_leaves_no_mean(tmp_path: Path) -> None:
    comparisons(tmp_path)
    write_run(tmp_path, "asam", "line", accuracy=0.9, dataset="b")
    found = overall(summarise(load_runs(tmp_path)).comparisons)
    assert row(found, "asam").averages.keys() == {"b"}
    assert row(found, "asam").mean is None


def test_one_seed_leaves_no_error(tmp_path: Path) -> None:
    for dataset in ("a", "b"):
        write_run(tmp_path, "erm", "line", accuracy=0.5, dataset=dataset)
    (only,) = overall(summarise(load_runs(tmp_path)).comparisons).rows
    assert only.mean is not None
    assert only.mean.error is None
    assert only.rank == 1
