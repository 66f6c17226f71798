"""The page in a real browser: quiet, without network, fitting, and drawn in the reader's colours."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from made_up_results import EVIL, sections

from steppe.analysis.figures import write_page

pytestmark = pytest.mark.browser
DESKTOP, PHONE = (1280, 900), (400, 844)
FIGURES = sum(len(section.figures) for section in sections())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "page.html", f"What {EVIL} does", sections())


@pytest.fixture
def opened(show: Any, path: Path) -> Any:
    return partial(show, path)


def wait_until(page: Any, condition: str) -> None:
    """Until the figures (``all``) are so. Playwright's own way would call eval() in the page, which forbids it."""
    for _ in range(300):
        if page.evaluate(
            f"(() => {{ const all = [...document.querySelectorAll('[data-figure]')]; return {condition}; }})()"
        ):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"it never came to be that {condition}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_everything_is_drawn_and_nothing_reaches_beyond_the_window(
    opened: Any, size: tuple[int, int], scheme: str
) -> None:
    page = opened(size, scheme)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [size[0], size[0]]
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((element) => {
            const box = element.getBoundingClientRect();
            return box.width && (box.right > innerWidth + 1 || box.left < -1) && !element.closest("svg, .skip");
        }).map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert beyond == []
    charts = page.locator("[data-figure]")
    assert charts.count() == FIGURES
    drawn = charts.evaluate_all(
        """charts => charts.map((chart) => [chart.querySelectorAll(".main-svg").length > 0,
            chart.getBoundingClientRect().height >= 100, chart.querySelectorAll(".subplot.xy").length > 0])"""
    )
    assert drawn == [[True, True, True]] * FIGURES


TEXTS = """() => {
    const box = (text) => text.getBoundingClientRect();
    const before = (a, b) => a.right <= b.left + 1 || a.bottom <= b.top + 1;
    const touch = (a, b) => !before(a, b) && !before(b, a);
    const beyond = (a, b) =>
        a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
    return [...document.querySelectorAll("[data-figure]")].flatMap((chart) => {
        const texts = [...chart.querySelectorAll("svg text")].filter((text) => box(text).width);
        const titles = texts.filter((text) => /title/.test(text.getAttribute("class")));
        const labels = [".xtick", ".ytick", ".y2tick", ".cbaxis"].map((on) => texts.filter((text) => text.closest(on)));
        const found = texts.filter((text) => beyond(box(text), box(chart))).map((text) => ["beyond", text]);
        for (const some of labels) {
            some.forEach((one, place) => {
                some.slice(place + 1).forEach((other) => touch(box(one), box(other)) && found.push([one, other]));
                titles.forEach((title) => touch(box(one), box(title)) && found.push([one, title]));
            });
        }
        return found.map((pair) => [chart.getAttribute("aria-label"), ...pair.map((each) => each.textContent ?? each)]);
    });
}"""
"""What reaches beyond its figure, and labels along an axis that touch each other or a title."""


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_texts_are_inside_of_their_figure_and_clear_of_each_other(opened: Any, size: tuple[int, int]) -> None:
    assert opened(size).evaluate(TEXTS) == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_matrices_are_square_and_planes_to_scale(opened: Any, size: tuple[int, int]) -> None:
    page = opened(size)
    shapes = page.evaluate(
        """() => [...document.querySelectorAll("[data-figure]")].map((chart) => chart._fullLayout)
            .filter((layout) => layout.meta).map((layout) => [layout._size.h / layout._size.w, layout.meta.ratio])"""
    )
    assert len(shapes) == 8
    for found, wanted in shapes:
        assert found == pytest.approx(wanted, rel=0.02)


def test_colours_follow_the_system(opened: Any) -> None:
    page = opened(DESKTOP, "light")
    colours = """[...document.querySelectorAll("[data-figure]")].map((chart) => [chart._fullLayout.paper_bgcolor,
        chart._fullLayout.font.color, chart._fullData[0].line?.color, chart._fullData[0].colorscale?.[0][1]])"""
    light = page.evaluate(colours)
    page.emulate_media(color_scheme="dark")
    wait_until(page, "all.every((chart) => chart._fullLayout.paper_bgcolor === '#15181b')")
    dark = page.evaluate(colours)
    assert {each[0] for each in light} == {"#fbfaf6"}
    assert {each[0] for each in dark} == {"#15181b"}
    assert {each[1] for each in dark} == {"#e9e6df"}
    for a, b in zip(light, dark, strict=True):
        assert a[2] != b[2] or a[2] is None
        assert a[3] != b[3] or a[3] is None


def test_a_narrower_window_redraws(opened: Any) -> None:
    page = opened()
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    wait_until(page, "all.every((chart) => chart._fullLayout.width <= innerWidth)")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


def test_names_stay_text(opened: Any) -> None:
    page = opened()
    assert page.locator("img").count() == 0
    assert page.locator("h1").inner_text() == f"What {EVIL} does"
    assert page.title() == f"What {EVIL} does"
    assert page.locator("section p").first.inner_text() == f"One paragraph with {EVIL}."
    assert f"{EVIL[:21]}…" in page.locator("[data-figure] .legendtext").all_text_contents()


def test_the_pointer_reads_the_values(opened: Any) -> None:
    page = opened()
    chart = page.locator('[aria-label="Distances"]')
    chart.scroll_into_view_if_needed()
    box = chart.locator(".nsewdrag").first.bounding_box()
    for step in (0, 1):  # plotly looks at movements
        page.mouse.move(box["x"] + box["width"] * 0.96 + step, box["y"] + 5)
    page.wait_for_selector('[aria-label="Distances"] .hovertext')
    assert chart.locator(".hovertext").text_content() == "0 · 10003.33"


def test_structure_for_those_who_listen(opened: Any) -> None:
    page = opened()
    assert page.locator("h1").count() == 1
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map((heading) => Number(heading.tagName[1]))")
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert page.locator("[data-figure]:not([role=img][aria-label])").count() == 0
    assert page.locator("figure > figcaption").count() == FIGURES


def test_on_paper_the_figures_are_dark_on_light(opened: Any) -> None:
    page = opened((900, 1000), "dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    wait_until(page, "all.every((chart) => chart._fullLayout.paper_bgcolor === '#fff')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 900
    assert page.pdf().startswith(b"%PDF")
