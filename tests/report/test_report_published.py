"""Published figures: the right ones, only beside what they may stand beside, in no rank and no test."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

import pytest
from made_up_runs import write_run

from steppe.report import load_runs, summarise
from steppe.report.markdown import markdown
from steppe.report.published import FILES, Published, published
from steppe.report.statistics import Comparison
from steppe.report.tables import dataset_table

PACS = ("art_painting", "cartoon", "photo", "sketch")
FULL = {"steps": 5000, "backbone": "resnet50.tv_in1k", "split": "domainbed"}


def store(root: Path, dataset: str = "PACS", domains: tuple[str, ...] = PACS, **options: object) -> Comparison:
    answer = {"answer": "test", "in_domain": "test"}
    for method in ("erm", "disam+sagm", "looksam"):
        for domain in domains:
            write_run(root, method, domain, domains=domains, dataset=dataset, result=answer, **{**FULL, **options})  # type: ignore[arg-type]
    (comparison,) = summarise(load_runs(root)).comparisons
    return comparison


def by_algorithm(found: Published, paper: str) -> dict[str, dict[str, float]]:
    return {
        figure.algorithm: {domain: round(100 * value.mean, 1) for domain, value in figure.values.items()}
        for figure in found.figures
        if figure.source.startswith(paper)
    }


def test_figures_of_the_same_algorithms_by_own_names_of_domains(tmp_path: Path) -> None:
    found = published(store(tmp_path))
    disam = by_algorithm(found, "DISAM")
    assert disam == {
        "ERM": {"art_painting": 84.7, "cartoon": 80.0, "photo": 97.2, "sketch": 79.3},
        "DISAM+SAGM": {"art_painting": 89.7, "cartoon": 81.5, "photo": 97.0, "sketch": 81.8},
    }
    assert by_algorithm(found, "DomainBed") == {
        "ERM": {"art_painting": 84.7, "cartoon": 80.8, "photo": 97.2, "sketch": 79.3}
    }
    erm = next(figure for figure in found.figures if figure.source == "DISAM (ICLR 2024), tables 1 and 6")
    assert erm.average is not None
    assert (round(100 * erm.average.mean, 1), round(100 * (erm.average.error or 0), 1)) == (85.5, 0.2)
    assert any("in no rank and no test" in note for note in found.notes)


def test_in_domain_figures_are_other_figures(tmp_path: Path) -> None:
    comparison = store(tmp_path)
    found = published(comparison, "in-domain")
    averages = {figure.algorithm: round(100 * figure.average.mean, 1) for figure in found.figures if figure.average}
    assert averages == {"ERM": 96.6, "DISAM+SAGM": 97.9}
    assert all(not figure.values for figure in found.figures)


@pytest.mark.parametrize(
    ("dataset", "domains", "value"),
    [
        ("rotated-mnist", ("0", "15", "30", "45", "60", "75"), {"0": 95.9, "75": 96.4}),
        ("colored-mnist", ("+90%", "+80%", "-90%"), {"+90%": 71.7, "+80%": 72.9, "-90%": 10.0}),
        ("VLCS", ("Caltech101", "LabelMe", "SUN09", "VOC2007"), {"SUN09": 73.4, "VOC2007": 74.6}),
        ("office_home", ("Art", "Clipart", "Product", "Real World"), {"Real World": 76.6}),
        ("terra_incognita", ("location_100", "location_38", "location_43", "location_46"), {"location_46": 35.7}),
    ],
)
def test_domainbed_s_figures(tmp_path: Path, dataset: str, domains: tuple[str, ...], value: dict[str, float]) -> None:
    found = by_algorithm(published(store(tmp_path, dataset, domains)), "DomainBed")
    assert found["ERM"].keys() == set(domains)
    assert {name: found["ERM"][name] for name in value} == value


def test_a_run_cut_short_stands_beside_nothing(tmp_path: Path) -> None:
    found = published(store(tmp_path, steps=300))
    assert found.figures == ()
    assert found.notes == ("Published figures are left out: they are of runs of 5,001 steps, these of 300.",)


@pytest.mark.parametrize("dataset", ["rotated-mnist-6000", "emoji", "PACS2"])
def test_another_data_set_has_none(tmp_path: Path, dataset: str) -> None:
    found = published(store(tmp_path, dataset))
    assert found.figures == ()
    assert "Nothing is published" in found.notes[0]


def test_another_seed_of_the_digits_is_the_same_data_set(tmp_path: Path) -> None:
    assert published(store(tmp_path, "rotated-mnist@3", ("0", "15", "30", "45", "60", "75"))).figures


def test_domainnet_takes_more_steps(tmp_path: Path) -> None:
    domains = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    assert not published(store(tmp_path / "short", "domain_net", domains)).figures
    found = published(store(tmp_path / "long", "domain_net", domains, steps=15001))
    assert by_algorithm(found, "DomainBed")["ERM"]["quickdraw"] == 12.2


def test_what_differs_is_said(tmp_path: Path) -> None:
    notes = " ".join(published(store(tmp_path, backbone="efficientnet_lite0")).notes)
    assert "The networks differ: ResNet-50 there, efficientnet_lite0 here." in notes
    assert "The splits differ" in notes  # the made-up runs answer on "test"
    assert "networks differ" not in " ".join(published(store(tmp_path / "same")).notes)


def test_an_average_over_other_domains_is_not_shown(tmp_path: Path) -> None:
    for domain in PACS[:2]:
        write_run(tmp_path, "erm", domain, domains=PACS, dataset="PACS", **FULL)  # type: ignore[arg-type]
    (comparison,) = summarise(load_runs(tmp_path)).comparisons
    found = published(comparison)
    assert found.figures
    assert all(figure.average is None for figure in found.figures)
    assert all(figure.values.keys() == set(PACS[:2]) for figure in found.figures)


def test_they_are_marked_and_never_the_best(tmp_path: Path) -> None:
    comparison = store(tmp_path)  # own accuracy: 50 % everywhere
    table = dataset_table(comparison, "held-out", published(comparison))
    assert all(row.source for row in table.published)
    assert {entry.place for row in table.published for entry in row.entries} == {0}
    assert dataset_table(comparison).rows == table.rows
    text = markdown([table])
    line = next(line for line in text.splitlines() if "DISAM+SAGM (published)" in line)
    assert "89.7 ± 0.6" in line
    assert "DISAM (ICLR 2024), tables 1 and 6" in line.replace("\\", "")


def test_the_files_are_whole_and_name_their_sources() -> None:
    for name in FILES:
        text = (resources.files("steppe.report") / "published" / name).read_text(encoding="utf-8")
        for row in csv.DictReader(text.splitlines()):
            assert row["paper"]
            assert row["table"]
            assert float(row["value"]) >= 0
            assert not row["std"] or float(row["std"]) >= 0


def test_domainbed_s_averages_are_those_of_its_cells() -> None:
    text = (resources.files("steppe.report") / "published" / "domainbed.csv").read_text(encoding="utf-8")
    cells: dict[tuple[str, str], list[float]] = {}
    averages: dict[tuple[str, str], float] = {}
    for row in csv.DictReader(text.splitlines()):
        key = row["dataset"], row["algorithm"]
        if row["domain"] == "avg":
            averages[key] = float(row["value"])
        else:
            cells.setdefault(key, []).append(float(row["value"]))
    assert len(averages) == 7 * 14
    for key, average in averages.items():
        assert sum(cells[key]) / len(cells[key]) == pytest.approx(average, abs=0.11), key
    assert averages["RotatedMNIST", "ERM"] == 98.0
    assert averages["ColoredMNIST", "ERM"] == 51.5
