"""Two stores against each other: differences by hand and by scipy, and honest words where nothing can be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up_runs import write_benchmark, write_run
from scipy import stats

from steppe.report import Summary, load_runs, summarise
from steppe.report.against import Against, against, against_table
from steppe.report.significance import holm


def of(root: Path) -> Summary:
    return summarise(load_runs(root))


def compared(root: Path) -> Against:
    return against(of(root / "new"), of(root / "old"))


def test_differences_over_shared_seeds(tmp_path: Path) -> None:
    new = {"line": [0.50, 0.56, 0.61, 0.99], "noto": [0.41, 0.42, 0.48]}
    old = {"line": [0.48, 0.55, 0.55], "noto": [0.42, 0.40, 0.45]}
    for name, cells in (("new", new), ("old", old)):
        for domain, values in cells.items():
            for seed, accuracy in enumerate(values):
                write_run(tmp_path / name, "sam", domain, seed, accuracy=accuracy)
    found = compared(tmp_path)
    assert [(item.method, item.held_out) for item in found.differences] == [("sam", "noto"), ("sam", "line")]
    for item in found.differences:
        d = np.array(new[item.held_out][:3]) - np.array(old[item.held_out])
        assert item.change.mean == pytest.approx(d.mean())
        assert item.change.error == pytest.approx(stats.sem(d))
        assert item.change.n == 3
        assert item.p == pytest.approx(stats.ttest_rel(new[item.held_out][:3], old[item.held_out]).pvalue)
        assert not item.equal
    assert [item.holm for item in found.differences] == holm([item.p for item in found.differences])
    (pair,) = found.methods
    assert pair.n == 2
    assert pair.difference == pytest.approx(np.mean([item.change.mean for item in found.differences]))


def test_the_same_store_differs_in_nothing(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "new")
    write_benchmark(tmp_path / "old")
    found = compared(tmp_path)
    assert len(found.differences) == 6
    assert all(item.equal and item.p is None for item in found.differences)
    assert found.remarks == ("Every shared run came out the same to the last digit.",)
    assert found.changed == {}
    assert all(row.entries[3].text == "equal" for row in against_table(found).rows)


def test_equal_settings_are_matched_before_equal_names(tmp_path: Path) -> None:
    for name, rhos in (("new", (0.05, 0.1)), ("old", (0.1, 0.2))):
        for rho in rhos:
            write_run(tmp_path / name, "sam", "line", accuracy=rho, hyper={"rho": rho})
    found = compared(tmp_path)
    assert [(item.method, item.ours, item.theirs) for item in found.differences] == [("sam (rho=0.1)", 0.1, 0.1)]
    assert found.ours_alone == ("sam (rho=0.05) on emoji",)
    assert found.theirs_alone == ("sam (rho=0.2) on emoji",)


def test_a_setting_that_was_changed_between_the_two_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "new", "sam", "line", accuracy=0.6, lr=1e-3)
    write_run(tmp_path / "old", "sam", "line", accuracy=0.5, lr=5e-5)
    found = compared(tmp_path)
    assert found.changed == {"lr": ("0.001", "5e-05")}
    (item,) = found.differences
    assert item.change.mean == pytest.approx(0.1)
    assert (item.change.error, item.p, item.holm) == (None, None, None)
    table = against_table(found, ("new", "old"))
    assert table.columns[1:3] == ("new", "old")
    assert any("lr (0.001 and 5e-05)" in note for note in table.notes)
    assert any("one seed only" in note for note in table.notes)


@pytest.mark.parametrize("change", [{"dataset_fingerprint": "fedcba"}, {"split": "domainbed"}, {"dataset": "photos"}])
def test_other_pictures_are_not_compared(tmp_path: Path, change: dict[str, str]) -> None:
    write_run(tmp_path / "new", "sam", "line")
    write_run(tmp_path / "old", "sam", "line", **change)
    found = compared(tmp_path)
    assert found.differences == ()
    assert len(found.ours_alone) == len(found.theirs_alone) == 1
    assert "nothing" not in found.remarks[0]
    assert "in common" in found.remarks[0]


def test_other_seeds_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "new", "sam", "line", 0)
    write_run(tmp_path / "old", "sam", "line", 1)
    assert compared(tmp_path).differences == ()
