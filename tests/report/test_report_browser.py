"""The page in a real browser: quiet, fitting, and showing the numbers of the runs' files."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import write_benchmark, write_run

from steppe.report import load_runs, summarise, write_page
from steppe.report.ranking import spread

pytestmark = pytest.mark.browser
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_benchmark(root, ("erm", "sam", "disam"), ("fluent", "line"), seeds=3, pictures_of_emoji=True)
    write_page(root)
    return root


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    methods = ("erm", "sam", "asam", "gsam", "sagm", "disam", "disam+sagm", "disam+gsam", "coral+disam+sagm", "swad")
    write_benchmark(root, methods, ("fluent", "noto", "twemoji", "line"), seeds=2)
    write_run(root, "disam", "line", 0, steps=300, hyper={"rho": 0.1, "lam": 0.2}, accuracy=0.4)
    write_page(root)
    return root


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", ["store", "crowded"])
def test_nothing_scrolls_sideways_but_tables_and_charts_in_their_boxes(
    show: Any, request: pytest.FixtureRequest, name: str, size: tuple[int, int], scheme: str
) -> None:
    page = show(request.getfixturevalue(name), size, scheme)
    widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths == [size[0], size[0]]
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((element) =>
            element.getBoundingClientRect().right > innerWidth + 1 &&
            !element.closest(".scroll, pre, svg, details:not([open])"))
            .map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert beyond == []


def test_the_table_shows_the_numbers_of_the_files(show: Any, store: Path) -> None:
    page = show(store)
    (comparison,) = summarise(load_runs(store)).comparisons
    results = {run.id: run.result for run in load_runs(store)}
    for method in comparison.methods:
        row = page.locator(f'tr[data-method="{method.name}"]')
        for domain, cell in method.cells.items():
            strict, everything = row.locator(f'td[data-domain="{domain}"] a.n').all()
            for link, shown, field in (
                (strict, cell.held_out, "held_out_accuracy"),
                (everything, cell.everything, "held_out_accuracy_all"),
            ):
                assert link.inner_text() == spread(shown)
                values = [results[run][field] for run in link.get_attribute("data-run").split()]
                assert len(values) == 3
                assert float(link.get_attribute("data-value")) == pytest.approx(sum(values) / 3)
        assert method.average is not None
        assert row.locator("td.average a.n").first.inner_text() == spread(method.average)
        assert method.average_in_domain is not None
        assert row.locator("td.in-domain a.n").inner_text() == spread(method.average_in_domain)
    for run, result in results.items():
        cells = page.locator(f'.run-table tr[data-id="{run}"] td').all_text_contents()
        assert cells[3] == str(result["selected_step"])
        assert cells[5:8] == [
            f"{100 * result[name]:.1f}" for name in ("held_out_accuracy", "held_out_accuracy_all", "in_domain_accuracy")
        ]


def test_the_headline_names_the_best(show: Any, store: Path) -> None:
    page = show(store)
    data = json.loads(page.locator("#steppe-data").text_content())
    (best,) = data["comparisons"][0]["best"]
    averages = {method["name"]: method["average"]["mean"] for method in data["comparisons"][0]["methods"]}
    assert averages[best] == max(averages.values())
    headline = page.locator("h2.headline")
    assert f"{best} held up best" in headline.inner_text()
    assert f"{100 * averages[best]:.1f}" in headline.inner_text()
    assert len(headline.get_attribute("data-run").split()) == 6


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_the_bars_are_as_many_and_as_high_as_they_should_be(show: Any, store: Path, size: tuple[int, int]) -> None:
    page = show(store, size)
    assert (
        page.locator(".chart-bars .barlayer .point").count() == 3 * 3
    )  # methods × (held-out domains and their average)
    assert page.locator(".chart-bars .scatterlayer .point").count() == 3 * 3
    assert page.locator(".chart-bars .barlayer .errorbar").count() == 3 * 3
    traces = page.evaluate(
        "document.querySelector('.chart-bars').data.filter((t) => t.type === 'bar')"
        ".map((t) => ({name: t.name, y: t.y, error: t.error_y.array}))"
    )
    (comparison,) = summarise(load_runs(store)).comparisons
    for trace, method in zip(traces, comparison.methods, strict=True):
        assert method.average is not None
        estimates = [cell.held_out for cell in method.cells.values()] + [method.average]
        assert trace["name"] == method.name
        assert trace["y"] == pytest.approx([100 * item.mean for item in estimates])
        assert trace["error"] == pytest.approx([100 * (item.error or 0) for item in estimates])
    # The drawn height is the number: the scale is read off the axis.
    heights = page.evaluate(
        "(() => { const chart = document.querySelector('.chart-bars'), axis = chart._fullLayout.yaxis;"
        "return [...chart.querySelectorAll('.barlayer .point path')]"
        ".map((bar) => bar.getBBox().height / axis._length * axis.range[1]); })()"
    )
    assert sorted(heights) == pytest.approx(sorted(value for trace in traces for value in trace["y"]), abs=0.5)


def test_the_curves_follow_the_controls(show: Any, store: Path) -> None:
    page = show(store)

    def drawn() -> Any:
        return page.evaluate(
            "document.querySelector('.chart-curves').data.map((t) => ({name: t.name, x: t.x, y: t.y, axis: t.xaxis}))"
        )

    raw = drawn()
    assert len(raw) == 9  # three methods × three source domains
    assert page.locator(".chart-curves .scatterlayer .js-line").count() == 9
    assert len({trace["axis"] for trace in raw}) == 3
    (run,) = [run for run in load_runs(store) if (run.algorithm, run.held_out, run.seed) == ("sam", "fluent", 0)]
    others = [run for run in load_runs(store) if (run.algorithm, run.held_out) == ("sam", "fluent")]
    losses = [
        [line["domain_loss"]["noto"] for line in member.metrics() if line["kind"] == "train"] for member in others
    ]
    shown = next(trace for trace in raw if trace["name"] == "sam · noto")
    assert shown["x"] == [line["step"] for line in run.metrics() if line["kind"] == "train"]
    assert shown["y"] == pytest.approx([sum(values) / 3 for values in zip(*losses, strict=True)])

    page.get_by_text("shifted and scaled to [0, 1]").click()
    scaled = drawn()
    assert all(min(trace["y"]) == 0 and max(trace["y"]) == 1 for trace in scaled)
    page.get_by_text("as measured").click()
    assert drawn() == raw

    page.get_by_text("source domain", exact=True).click()
    assert {trace["name"] for trace in drawn()} == {trace["name"] for trace in raw}
    assert page.locator(".curve-legend li").all_inner_texts() == ["erm", "sam", "disam"]
    page.locator("select[name=held_out]").select_option("line")
    assert {trace["name"].split(" · ")[1] for trace in drawn()} == {"fluent", "noto", "twemoji"}


def test_the_controls_work_from_the_keyboard(show: Any, store: Path) -> None:
    page = show(store)
    page.locator("input[name=form][value=loss]").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('.chart-curves').data.every((t) => Math.max(...t.y) === 1)")


def test_the_pictures_are_visible_and_marked(show: Any, store: Path) -> None:
    page = show(store)
    panels = page.locator(".panel")
    assert panels.evaluate_all("all => all.map((panel) => panel.dataset.domain)") == [
        "fluent",
        "line",
        "noto",
        "twemoji",
    ]
    images = page.locator(".pictures img")
    assert images.count() == 80
    assert images.evaluate_all("all => all.every((image) => image.complete && image.naturalWidth === 64 && image.alt)")
    data = json.loads(page.locator("#steppe-data").text_content())
    best = data["comparisons"][0]["best"][0]
    run = next(run for run in load_runs(store) if (run.algorithm, run.held_out, run.seed) == (best, "line", 0))
    entries = {entry["key"]: entry for entry in run.predictions()["line"]}
    for item in page.locator('.panel[data-domain="line"] .pictures li').all():
        entry = entries[item.get_attribute("title").split(" · ")[0]]
        right = entry["label"] == entry["predicted"]
        assert ("✓" in item.inner_text()) == right
        assert ("✗" in item.inner_text()) != right
    right = sum(entry["label"] == entry["predicted"] for entry in entries.values())
    tally = page.locator('.panel[data-domain="line"] .tally').inner_text()
    assert tally.startswith(f"{right} of {len(entries)} right")


def test_a_number_leads_to_its_runs(show: Any, store: Path) -> None:
    page = show(store)
    assert page.locator("details.runs").get_attribute("open") is None
    number = page.locator('tr[data-method="sam"] td[data-domain="line"] a.n').first
    number.click()
    picked = page.locator(".run-table tr.picked").evaluate_all("all => all.map((row) => row.dataset.id)")
    assert sorted(picked) == sorted(number.get_attribute("data-run").split())
    assert page.locator(".run-table tr.picked").first.is_visible()


def test_dark_follows_the_system(show: Any, store: Path) -> None:
    page = show(store, DESKTOP, "light")
    colours = """[getComputedStyle(document.body).backgroundColor,
        document.querySelector(".chart-bars")._fullLayout.paper_bgcolor]"""
    light = page.evaluate(colours)
    page.emulate_media(color_scheme="dark")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    dark = page.evaluate(colours)
    assert light == ["rgb(251, 250, 246)", "#fbfaf6"]
    assert dark == ["rgb(21, 24, 27)", "#15181b"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_small_type_needs(show: Any, store: Path, scheme: str) -> None:
    page = show(store, DESKTOP, scheme)
    low = page.evaluate(
        """() => {
            const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const luminance = (colour) => {
                const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(v / 255));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const behind = (element) => {
                const colour = getComputedStyle(element).backgroundColor;
                return /, 0\\)$/.test(colour) ? behind(element.parentElement) : colour;
            };
            const found = [];
            for (const element of document.querySelectorAll("body *")) {
                const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
                if (!own || element.closest("script, svg, .skip")) { continue; }
                const pair = [getComputedStyle(element).color, behind(element)].map(luminance);
                const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
                if (ratio < 4.5) { found.push([ratio, element.outerHTML.slice(0, 120)]); }
            }
            return found;
        }"""
    )
    assert low == []


def test_structure_for_those_who_listen(show: Any, store: Path) -> None:
    page = show(store)
    assert page.locator("h1").count() == 1
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map((heading) => Number(heading.tagName[1]))")
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator(".chart:not([role=img][aria-label])").count() == 0
    assert page.locator("input, select").evaluate_all("all => all.every((control) => control.labels.length === 1)")


def test_on_paper_everything_fits_and_the_runs_are_listed(show: Any, store: Path) -> None:
    page = show(store, (680, 1000), "dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    assert page.locator(".run-table").is_visible()
    assert not page.locator(".controls").first.is_visible()
    assert page.evaluate("document.querySelector('.chart-bars')._fullLayout.paper_bgcolor") == "#fff"
    assert page.pdf().startswith(b"%PDF")


def test_names_stay_text_in_the_charts(show: Any, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)><b>bold<∕b>%{x}"
    for method in (evil, "erm"):
        write_run(tmp_path, method, evil + "1", domains=(evil + "1", evil + "2", "c"), accuracy=0.5)
    write_page(tmp_path)
    page = show(tmp_path)
    page.on("dialog", lambda dialog: pytest.fail(f"a name was executed: {dialog.message}"))
    assert page.locator(".chart-bars .xtick text").all_text_contents() == [evil + "1"]
    assert evil in page.locator(".chart-curves .annotation-text").all_text_contents()
    page.locator(".chart-bars").scroll_into_view_if_needed()
    box = page.locator(".chart-bars .barlayer .point").last.bounding_box()
    for step in (0, 1):  # plotly looks at movements
        page.mouse.move(box["x"] + box["width"] / 2 + step, box["y"] + box["height"] / 2)
    page.wait_for_selector(".chart-bars .hovertext")
    assert evil in page.locator(".chart-bars .hovertext").first.text_content()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator(".samples-missing").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_diamond_on_its_own_bar_is_seen(show: Any, tmp_path: Path, scheme: str) -> None:
    write_run(tmp_path, "erm", "line", accuracy=0.9, in_domain=0.5)
    write_page(tmp_path)
    page = show(tmp_path, scheme=scheme)
    (inside,) = page.locator(".chart-bars .scatterlayer .point").evaluate_all(
        "points => points.map((point) => getComputedStyle(point).fill)"
    )
    paper = page.evaluate("getComputedStyle(document.querySelector('.chart-bars .main-svg')).backgroundColor")
    bar = page.locator(".chart-bars .barlayer .point path").evaluate("bar => getComputedStyle(bar).fill")
    assert inside != bar
    assert inside == paper
