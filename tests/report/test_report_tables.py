"""Tables as Markdown, LaTeX and CSV: the right numbers, the right marks, names that break nothing."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import write_benchmark, write_run

from steppe.report import load_runs, summarise
from steppe.report.delimited import HEADS, delimited
from steppe.report.latex import escape as tex
from steppe.report.latex import latex
from steppe.report.markdown import escape as md
from steppe.report.markdown import markdown
from steppe.report.ranking import spread
from steppe.report.significance import family
from steppe.report.statistics import Comparison
from steppe.report.tables import Entry, Row, Table, dataset_table, overall_table, table_of_tests

EVIL = r"50% of_{this} & that $x^2$ ~#\input|<b>**`[a](b)"


def made(root: Path) -> tuple[Comparison, ...]:
    for dataset in ("emoji", "photos"):
        write_benchmark(root, ("erm", "sam", "disam"), ("fluent", "line"), seeds=3, dataset=dataset)
    return summarise(load_runs(root)).comparisons


def every_table(root: Path) -> list[Table]:
    comparisons = made(root)
    return [*map(dataset_table, comparisons), overall_table(comparisons), table_of_tests(family(comparisons))]


def cells(line: str) -> list[str]:
    """The cells of a Markdown table's line."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_has_every_number(tmp_path: Path) -> None:
    (comparison, _) = made(tmp_path)
    lines = markdown([dataset_table(comparison)]).splitlines()
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert rows[0] == ["Algorithm", "fluent", "line", "average"]
    assert rows[1] == [":---", "---:", "---:", "---:"]
    for row, method in zip(rows[2:], comparison.methods, strict=True):
        wanted = [method.cells["fluent"].held_out, method.cells["line"].held_out, method.average]
        assert row[0] == method.name
        assert [cell.strip("*") for cell in row[1:]] == [spread(value) for value in wanted if value]


def test_best_and_second_best_as_printed(tmp_path: Path) -> None:
    for method, line, noto in (("erm", 0.5, 0.3), ("sam", 0.70004, 0.6), ("disam", 0.69996, 0.61), ("asam", 0.2, 0.61)):
        write_run(tmp_path, method, "line", accuracy=line)
        write_run(tmp_path, method, "noto", accuracy=noto)
    (comparison,) = summarise(load_runs(tmp_path)).comparisons
    table = dataset_table(comparison)
    places = {row.name: [entry.place for entry in row.entries] for row in table.rows}
    assert table.columns == ("noto", "line", "average")
    # 70.0 is shared by two, so 50.0 is the second; the average of disam, 65.5, is before that of sam, 65.0
    assert places == {"erm": [0, 2, 0], "sam": [2, 1, 2], "disam": [1, 1, 1], "asam": [1, 0, 0]}
    text = latex([table])
    assert r"disam & \textbf{61.0} & \textbf{70.0} & \textbf{65.5} \\" in text
    assert r"sam & \underline{60.0} & \textbf{70.0} & \underline{65.0} \\" in text
    assert "| disam | **61.0** | **70.0** | **65.5** |" in markdown([table])
    assert "| sam | *60.0* | **70.0** | *65.0* |" in markdown([table])


def test_a_lone_method_is_not_the_best(tmp_path: Path) -> None:
    write_run(tmp_path, "erm", "line", accuracy=0.5)
    (comparison,) = summarise(load_runs(tmp_path)).comparisons
    assert [entry.place for row in dataset_table(comparison).rows for entry in row.entries] == [0]


@pytest.mark.parametrize("metric", ["held-out", "all", "in-domain"])
def test_the_metric_that_was_asked_for(tmp_path: Path, metric: str) -> None:
    write_run(tmp_path, "erm", "line", accuracy=0.5, everything=0.6, in_domain=0.7)
    (comparison,) = summarise(load_runs(tmp_path)).comparisons
    (row,) = dataset_table(comparison, metric).rows  # type: ignore[arg-type]
    assert row.entries[0].value is not None
    assert row.entries[0].value.mean == {"held-out": 0.5, "all": 0.6, "in-domain": 0.7}[metric]


def test_csv_is_exact_and_tidy(tmp_path: Path) -> None:
    comparisons = made(tmp_path)
    found = list(csv.DictReader(io.StringIO(delimited([dataset_table(item) for item in comparisons]))))
    assert tuple(found[0]) == HEADS
    assert len(found) == 2 * 3 * 3
    for comparison in comparisons:
        for method in comparison.methods:
            for domain, cell in method.cells.items():
                (line,) = [
                    line
                    for line in found
                    if (line["table"], line["row"], line["column"]) == (comparison.name, method.name, domain)
                ]
                assert float(line["mean"]) == cell.held_out.mean
                assert float(line["standard_error"]) == cell.held_out.error
                assert line["seeds"] == "3"
                assert line["source"] == ""


def test_csv_keeps_names_whole() -> None:
    table = Table("c", "k", "h", ("a,b", 'say "x"'), (Row("one\ntwo", (Entry(text="1"), Entry(text="2"))),))
    lines = list(csv.DictReader(io.StringIO(delimited([table]))))
    assert [(line["row"], line["column"], line["text"]) for line in lines] == [
        ("one\ntwo", "a,b", "1"),
        ("one\ntwo", 'say "x"', "2"),
    ]


def test_latex_escapes_what_is_special() -> None:
    assert tex(r"a_b & 50% {x} #1 $ ~ ^ \ ") == (
        r"a\_b \& 50\% \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert tex("−90% ± ρ 0.1") == r"$-$90\% $\pm$ $\rho$ 0.1"
    assert tex("two\nlines\tand café") == "two lines and café"
    assert tex("emoji \N{GRINNING FACE}") == "emoji U+1F600"


@given(st.text(max_size=30))
def test_nothing_in_a_name_is_markup(name: str) -> None:
    escaped = tex(name)
    assert "\n" not in escaped
    # without the sequences that escape writes, nothing that TeX acts upon is left
    left = re.sub(r"\\text[a-z]+\{\}|\\dots\{\}|\\[{}&%$#_]|\$\\?[a-z^\-]+(\\circ)?\$", "", escaped)
    assert not set(left) & set("\\{}&%$#_^"), (name, escaped)
    plain = re.sub(r"\\(.)", "", md(name))
    assert not set(plain) & set("`*_{}[]<>|~$#\\\n")


def test_the_columns_of_latex_add_up(tmp_path: Path) -> None:
    for table in every_table(tmp_path):
        text = latex([table])
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()
        (columns,) = re.findall(r"\\begin\{tabular\}\{(l c*|lc*)\}", text)
        for line in (line for line in body if line.endswith(r"\\")):
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
        assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on the PATH (texlive-latex-recommended)")
def test_latex_compiles_whatever_the_names(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    tables = every_table(root)
    rows = [Row(name, (Entry(text=EVIL, place=1), Entry(text=name))) for name in (EVIL, "[2pt]", "*", "[", "\\\\")]
    evil = Table(EVIL, EVIL, EVIL, (EVIL, "é ± − ρ → 😀"), tuple(rows),
                 published=(Row(EVIL, (Entry(), Entry(text="1")), source=EVIL),), notes=(EVIL,))  # fmt: skip
    document = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n%s\n\\end{document}\n"
    (tmp_path / "table.tex").write_text(document % latex([*tables, evil]), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert (tmp_path / "table.pdf").read_bytes().startswith(b"%PDF")


def test_the_table_of_tests(tmp_path: Path) -> None:
    comparisons = made(tmp_path)
    tests = family(comparisons)
    table = table_of_tests(tests)
    assert [row.name for row in table.rows] == ["erm − sam", "erm − disam", "sam − disam"]
    for row, pair in zip(table.rows, tests.pairs, strict=True):
        assert row.entries[0].text == "4"
        assert float(row.entries[1].text.replace("−", "-")) == pytest.approx(100 * pair.difference, abs=0.051)
    assert any("no signed-rank test can reach 0.05" in note for note in table.notes)


def test_the_table_over_data_sets_marks_the_lowest_rank(tmp_path: Path) -> None:
    table = overall_table(made(tmp_path))
    assert table.columns == ("emoji", "photos", "average", "average rank")
    ranks = {row.name: float(row.entries[-1].text) for row in table.rows}
    assert min(ranks, key=ranks.__getitem__) == "disam"
    (best,) = [row.name for row in table.rows if row.entries[-1].place == 1]
    assert best == "disam"
