"""`steppe report`: tables for a paper, parts of a store, two stores; and `steppe radius`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from command_line import SMALL, complaint, help_page
from made_up_runs import write_benchmark, write_run

from steppe.cli import run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_benchmark(tmp_path / "runs", ("erm", "sam", "disam"), ("fluent", "line"), seeds=2)


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run(["report", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_help_teaches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_page(capsys, monkeypatch, "report")
    for word in ("--format", "markdown", "latex", "--only", "--against", "--published", "Holm"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80
    assert "bisection" in help_page(capsys, monkeypatch, "radius")


@pytest.mark.parametrize(
    ("form", "start"), [("markdown", "**emoji: accuracy"), ("latex", "% needs"), ("csv", "table,row,column")]
)
def test_tables_are_printed_or_written(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, start: str
) -> None:
    text = said(capsys, store, "--format", form)
    assert text.startswith(start)
    out = tmp_path / "new" / "table"
    assert said(capsys, store, "--format", form, "--out", out).strip() == str(out)
    assert out.read_text() == text
    assert not (store / "report.html").exists()


def test_latex_has_the_three_tables(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, store, "--format", "latex")
    assert text.count(r"\begin{table}") == 3
    assert "average rank" in text
    assert "signed-rank" in text


def test_only_and_metric(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, store, "--format", "csv", "--metric", "in-domain", "--only", "held-out=line", "seed=1")
    lines = [line for line in csv.DictReader(io.StringIO(text)) if line["table"] == "emoji"]
    assert {line["column"] for line in lines} == {"line"}
    for line in lines:
        (path,) = [
            path
            for path in store.glob(f"emoji/{line['row']}/line/*/result.json")
            if json.loads(path.read_text())["seed"] == 1
        ]
        assert float(line["mean"]) == json.loads(path.read_text())["in_domain_accuracy"]


def test_a_page_about_a_part(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, store, "--only", "algorithm=sam,erm")
    assert "disam" not in text
    page = (store / "report.html").read_text()
    assert 'data-method="sam"' in page
    assert 'data-method="disam"' not in page


def test_a_baseline_shows_the_tests_in_the_terminal(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = said(capsys, store)
    assert "Holm" not in plain
    text = said(capsys, store, "--baseline", "erm")
    assert "sam − erm" in text
    assert "Holm" in text


def test_two_stores(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_benchmark(tmp_path / "before", ("erm", "sam"), ("fluent", "line"), seeds=2)
    text = said(capsys, store, "--against", other)
    assert "Every shared run came out the same to the last digit." in " ".join(text.split())
    assert "disam on emoji" in " ".join(text.split())
    assert "Against the others" in (store / "report.html").read_text()


def test_several_data_sets_have_a_table_of_their_own(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_benchmark(store, ("erm", "sam", "disam"), ("fluent", "line"), seeds=2, dataset="photos")
    text = said(capsys, store)
    assert "average rank" in text or "rank" in text
    assert "of 2 data sets" in " ".join(text.split())


@pytest.mark.parametrize("width", ["40", "80"])
def test_nothing_is_wider_than_the_terminal(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for dataset in ("photos", "a-data-set-with-a-long-name"):
        write_benchmark(store, ("erm", "sam", "disam"), ("fluent", "line"), seeds=2, dataset=dataset)
    text = said(capsys, store, "--baseline", "erm", "--against", store)
    lines = [line for line in text.splitlines() if not line.startswith(("page:", "emoji", "photos"))]
    assert max(map(len, lines)) <= max(int(width), 60)


def test_published_figures_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domains = ("art_painting", "cartoon", "photo", "sketch")
    for domain in domains:
        write_run(tmp_path, "erm", domain, domains=domains, dataset="PACS", steps=5001, backbone="resnet50.tv_in1k")
    assert "published" not in said(capsys, tmp_path, "--format", "markdown")
    text = said(capsys, tmp_path, "--format", "markdown", "--published")
    assert text.count("(published)") == 2
    assert r"\multicolumn" in said(capsys, tmp_path, "--format", "latex", "--published")
    said(capsys, tmp_path, "--published")
    page = (tmp_path / "report.html").read_text()
    assert page.count('<tr class="published">') == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "held-out=lime"], "did you mean 'line'"),
        (["--only", "line"], "KEY=VALUE"),
        (["--baseline", "same"], "did you mean 'sam'"),
        (["--against", "nowhere"], "no folder of runs at nowhere"),
    ],
)
def test_wrong_input_is_said_before_anything_is_written(
    store: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in complaint(capsys, "report", store, *arguments)
    assert not (store / "report.html").exists()


def test_an_empty_store_has_no_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no finished runs" in complaint(capsys, "report", tmp_path, "--format", "csv")


def test_a_search_for_the_largest_radius(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "radius"
    arguments = ["radius", str(drawings), "--held-out", "line", "--algorithms", "sam", "--out", str(out)]
    small = [*SMALL, "--low", "0.05", "--high", "100", "--factor", "100", "--threshold", "0.99"]
    assert run([*arguments, *small]) == 0
    text = capsys.readouterr().out
    assert "Largest rho that still trains" in text
    runs = len(list(out.rglob("result.json"))) + len(list(out.rglob("failure.json")))
    assert f"{runs}" in text
    assert run([*arguments, *small]) == 0  # everything is there
    assert run(["report", str(out)]) in (0, 2)  # 2: where every run broke down, there is nothing to report
    capsys.readouterr()
    assert "no radius rho" in complaint(capsys, *arguments[:4], "--algorithms", "erm", "--out", out)
