"""The page's boxes in a real browser: what is chosen is shown, with the numbers that Python gives for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import write_benchmark, write_run

from steppe.benchmark.radii import LargestRadius, Trial, write_radius
from steppe.report import load_runs, page, page_data, summarise, write_page
from steppe.report.page import Extras
from steppe.report.plans import open_runs
from steppe.report.ranking import percent, spread
from steppe.report.significance import family
from steppe.training.config import Settings

pytestmark = pytest.mark.browser
DOMAINS = ("fluent", "noto", "line")


def rich(root: Path) -> Path:
    """Two data sets, a sweep over rho, sharpness, a missing cell, a search for the largest radius."""
    for dataset in ("emoji", "photos"):
        write_benchmark(root, ("erm", "sam", "disam"), DOMAINS, seeds=3, dataset=dataset)
    for rho in (0.01, 0.2):
        for seed in range(2):
            for domain in DOMAINS:
                write_run(root, "sam", domain, seed, accuracy=0.5 + rho / 3 + seed / 50, hyper={"rho": rho})
    write_run(root, "asam", "line", 0, accuracy=0.41)
    for path in root.glob("emoji/*/*/*/metrics.jsonl"):
        rows = [{"kind": "eval", "step": step, "gradient_variance": 3.0 / step} for step in (50, 100, 150, 200)]
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    trials = (Trial(0.1, True, (0.3,)), Trial(0.2, False, (None,)))
    write_radius(LargestRadius("sam", "emoji", "line", 300, 1, 0.5, 0.1, 0.2, trials), root, Settings())
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = rich(tmp_path_factory.mktemp("runs"))
    other = write_benchmark(tmp_path_factory.mktemp("other"), ("erm", "sam"), DOMAINS, seeds=2)
    write_page(root, extras=Extras(against=summarise(load_runs(other))))
    return root


def unfold(shown: Any) -> None:
    shown.locator("details.fold").evaluate_all("all => all.forEach((fold) => { fold.open = true; })")


def toggle(shown: Any, key: str, name: str) -> None:
    shown.locator(".filters details").evaluate("all => { all.open = true; }")
    shown.locator(f'.filters [data-key="{key}"] label').filter(has=shown.locator(f'input[value="{name}"]')).click()


def test_everything_is_shown_at_first(show: Any, store: Path) -> None:
    shown = show(store)
    assert shown.locator(".filters .chosen").inner_text() == "everything"
    assert shown.locator("tr[data-method]:visible").count() == shown.locator("tr[data-method]").count()
    assert shown.locator("section[data-comparison]:visible").count() == 2
    unfold(shown)
    for part in ("#overall", "#against", "#radii", ".tests", ".chart-sensitivity", ".chart-sharpness"):
        assert shown.locator(part).first.is_visible(), part


def test_averages_over_some_domains_are_those_of_a_store_of_them(show: Any, store: Path) -> None:
    shown = show(store)
    toggle(shown, "domain", "noto")
    assert shown.locator(".filters .chosen").inner_text() == "2 of 3 domains"
    part = summarise(open_runs(store, ["held-out=fluent,line"]))
    for number, comparison in enumerate(part.comparisons):
        section = shown.locator(f'section[data-comparison="{number}"]')
        assert section.get_attribute("data-dataset") == comparison.name
        assert section.locator("thead th[data-domain]:visible").count() == 2
        for method in comparison.methods:
            row = section.locator(f'tr[data-method="{method.name}"]')
            assert row.locator("td[data-domain]:visible").count() == 2
            wanted = spread(method.average) if method.average else "–"
            assert row.locator("td.average").inner_text() == wanted
            inside = spread(method.average_in_domain) if method.average_in_domain else "–"
            assert row.locator("td.in-domain").inner_text() == inside
        bars = section.locator(".chart-bars").evaluate(
            "chart => chart.data.filter((t) => t.type === 'bar').map((t) => t.y)"
        )
        for method, heights in zip(comparison.methods, bars, strict=True):
            estimates = [cell.held_out for cell in method.cells.values()] + ([method.average] if method.average else [])
            assert heights == pytest.approx([100 * item.mean for item in estimates])
    before = spread(next(iter(summarise(load_runs(store)).comparisons)).methods[0].average)
    toggle(shown, "domain", "noto")
    assert (
        shown.locator('section[data-comparison="0"] tr[data-method="erm"] td.average a.n').first.inner_text() == before
    )


def test_methods_and_data_sets_come_and_go(show: Any, store: Path) -> None:
    shown = show(store)
    toggle(shown, "method", "disam")
    toggle(shown, "dataset", "photos")
    assert "1 of 2 data sets" in shown.locator(".filters .chosen").inner_text()
    assert shown.locator("section[data-comparison]:visible").count() == 1
    assert shown.locator('tr[data-method="disam"]:visible').count() == 0
    names = shown.locator(".chart-bars").first.evaluate("chart => chart.data.map((t) => t.name)")
    assert "disam" not in names
    assert "erm" in names
    assert shown.locator('tr[data-first="disam"]:visible, tr[data-second="disam"]:visible').count() == 0
    assert shown.locator('#overall tr[data-row="disam"]:visible').count() == 0
    shown.locator('[data-none="method"]').click()
    assert shown.locator("section[data-comparison]:visible").count() == 0
    shown.locator('[data-all="method"]').click()
    assert shown.locator('tr[data-method="disam"]:visible').count() > 0


def test_the_boxes_work_from_the_keyboard(show: Any, store: Path) -> None:
    shown = show(store)
    shown.locator(".filters details").evaluate("all => { all.open = true; }")
    shown.locator('.filters input[value="noto"]').focus()
    shown.keyboard.press("Space")
    assert shown.locator(".filters .chosen").inner_text() == "2 of 3 domains"


def test_the_tests_on_the_page_are_python_s(show: Any, store: Path) -> None:
    shown = show(store)
    summary = summarise(load_runs(store))
    tests = family([summary.comparisons[0]])
    unfold(shown)
    rows = shown.locator('section[data-comparison="0"] .tests tbody tr')
    assert rows.count() == len(tests.pairs)
    for row, pair in zip(rows.all(), tests.pairs, strict=True):
        cells = row.locator("td").all_text_contents()
        assert float(cells[0].replace("−", "-")) == pytest.approx(100 * pair.difference, abs=0.051)
        assert int(cells[2]) == pair.n
        for text, value in zip(cells[3:], (pair.t.holm, pair.wilcoxon.holm), strict=True):
            assert text.strip() == ("–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}")
        drawn = row.locator(".interval .span")
        assert drawn.count() == (pair.low is not None)
        if pair.low is not None and pair.high is not None:
            start, end = map(float, re.findall(r"M(\S+) 8H(\S+)", drawn.get_attribute("d"))[0])
            assert (start > 50) == (pair.low > 0)  # zero is in the middle
            assert (end < 50) == (pair.high < 0)
            assert "certain" in drawn.get_attribute("class") or pair.low <= 0 <= pair.high


def test_sensitivity_is_drawn_and_follows_its_choice(show: Any, store: Path) -> None:
    shown = show(store)
    chart = shown.locator(".chart-sensitivity").first
    (average,) = chart.evaluate(
        "chart => chart.data.map((t) => ({x: t.x, y: t.y, error: t.error_y.array, name: t.name}))"
    )
    assert average["name"] == "sam"
    assert average["x"] == [0.01, 0.05, 0.2]
    assert chart.evaluate("chart => chart._fullLayout.xaxis.type") == "log"
    methods = {method.name: method for method in summarise(load_runs(store)).comparisons[0].methods}
    wanted = [methods[f"sam (rho={rho})"] for rho in (0.01, 0.05, 0.2)]
    assert average["y"] == pytest.approx([100 * method.average.mean for method in wanted])
    shown.locator("select[name=sensitivity]").first.select_option("line")
    (line,) = chart.evaluate("chart => chart.data.map((t) => ({y: t.y, error: t.error_y.array}))")
    assert line["y"] == pytest.approx([100 * method.cells["line"].held_out.mean for method in wanted])
    assert line["error"] == pytest.approx([100 * method.cells["line"].held_out.error for method in wanted])


def test_sharpness_is_drawn_for_each_held_out_domain(show: Any, store: Path) -> None:
    chart = show(store).locator(".chart-sharpness").first
    traces = chart.evaluate("chart => chart.data.map((t) => ({name: t.name, x: t.x, y: t.y}))")
    assert len(traces) == 5 * 3 + 1  # erm, three of sam, disam on three domains; asam on one
    assert traces[0]["x"] == [50, 100, 150, 200]
    assert traces[0]["y"] == pytest.approx([3 / 50, 3 / 100, 3 / 150, 3 / 200])
    assert chart.evaluate("chart => chart._fullLayout.yaxis.type") == "log"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_nothing_scrolls_sideways(show: Any, store: Path, size: tuple[int, int], scheme: str) -> None:
    shown = show(store, size, scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") == size[0]
    beyond = shown.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((element) =>
            element.getBoundingClientRect().right > innerWidth + 1 &&
            !element.closest(".scroll, pre, svg, details:not([open])"))
            .map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert beyond == []
    for box in shown.locator(".chips label:visible").all():
        assert box.bounding_box()["height"] >= 24  # a finger


def test_thousands_of_runs_stay_usable(show: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LISTED_UP_TO", 40)
    monkeypatch.setattr(page_data, "MOST_FILES", 60)
    monkeypatch.setattr(page, "MOST_FILES", 60)
    for number in range(16):
        for domain in ("fluent", "line"):
            for seed in range(3):
                accuracy = 0.3 + number / 40 + seed / 100
                hyper = {"rho": round(0.01 * (number + 1), 2)}
                write_run(tmp_path, "sam", domain, seed, accuracy=accuracy, hyper=hyper)
    write_benchmark(tmp_path, ("erm",), ("fluent", "line"), seeds=3)
    shown = show(write_page(tmp_path))
    runs = load_runs(tmp_path)
    assert shown.locator(".run-table tbody tr").count() == 0
    # Of seventeen methods the best and plain training are shown, the others a click away.
    assert shown.locator("tr[data-method]:visible").count() == 12
    assert shown.locator('tr[data-method="erm"]').is_visible()
    assert not shown.locator('tr[data-method="sam (rho=0.01)"]').is_visible()
    assert shown.locator('tr[data-method="sam (rho=0.16)"]').is_visible()
    toggle(shown, "method", "sam (rho=0.01)")
    assert shown.locator('tr[data-method="sam (rho=0.01)"]').is_visible()
    # Curves of twelve methods on two domains: two seeds of each are 48 files, three would be more than 60.
    data = json.loads(shown.locator("#steppe-data").text_content())
    assert len({curve["method"] for curve in data["comparisons"][0]["curves"]}) == 12
    assert {len(curve["runs"]) for curve in data["comparisons"][0]["curves"]} == {2}
    assert "the first 2 are in them" in " ".join(shown.locator("figcaption").all_inner_texts())
    # The table of runs is made when it is looked at, and a number still leads to its runs.
    number = shown.locator('tr[data-method="sam (rho=0.16)"] td[data-domain="line"] a.n').first
    number.click()
    picked = shown.locator(".run-table tr.picked").evaluate_all("all => all.map((row) => row.dataset.id)")
    assert sorted(picked) == sorted(number.get_attribute("data-run").split())
    assert shown.locator(".run-table tr.picked").first.is_visible()
    assert shown.locator(".run-table tbody tr").count() == min(200, len(runs))
    assert shown.locator(".run-table tr.picked td").nth(5).inner_text() in {
        percent(run.held_out_accuracy) for run in runs
    }
    assert shown.locator(".run-table th:not([scope])").count() == 0


def test_the_runs_are_listed_in_portions(show: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LISTED_UP_TO", 10)
    write_benchmark(tmp_path, ("erm", "sam"), ("fluent", "line"), seeds=60)
    shown = show(write_page(tmp_path))
    shown.locator("details.runs summary").click()
    shown.wait_for_selector(".run-table tbody tr")  # made when the browser says that the list was opened
    assert shown.locator(".run-table tbody tr").count() == 200
    assert shown.locator(".runs-shown").inner_text() == "200 of 240 shown"
    shown.locator(".more-runs").click()
    assert shown.locator(".run-table tbody tr").count() == 240
    assert not shown.locator(".more-runs").is_visible()
    ids = shown.locator(".run-table tbody tr").evaluate_all("all => all.map((row) => row.dataset.id)")
    assert sorted(ids) == sorted(run.id for run in load_runs(tmp_path))
