"""The figures hold the numbers of the results, and the page is one file with all of them."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise as pairs
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from made_up_results import EVIL, comparison, ground, line, local_entropy, pairwise, sections

from steppe.analysis import figures
from steppe.analysis.figures import Section, cka, diversity, entropy, matrix, plane, segment, write_page
from steppe.analysis.shades import DARK, DIVERGING, SEQUENTIAL, VARIABLES
from steppe.look import style_sheet


def plain(figure: go.Figure) -> dict[str, Any]:
    """As a browser gets it."""
    found: dict[str, Any] = json.loads(figure.to_json())
    return found


def numbers(rows: torch.Tensor) -> list[Any]:
    return [[value if math.isfinite(value) else None for value in row] for row in rows.tolist()]


def test_matrices_hold_every_pair() -> None:
    result = pairwise(5)
    found = plain(matrix(result, steps=[0, 10, 20, 30, 40]))
    assert found["data"][0]["z"] == numbers(result.distances)
    assert found["layout"]["xaxis"]["ticktext"] == ["0", "10", "20", "30", "40"]
    assert found["layout"]["yaxis"]["range"] == [4.5, -0.5]  # the first snapshot on top
    cosines = plain(matrix(result, "cosine"))
    assert cosines["data"][0]["z"] == numbers(result.cosines)
    assert cosines["data"][0]["z"][0] == [None] * 5
    assert (cosines["data"][0]["zmin"], cosines["data"][0]["zmax"]) == (-1, 1)
    with pytest.raises(ValueError, match="4 steps for 5 snapshots"):
        matrix(result, steps=[1, 2, 3, 4])


def test_means_stand_over_their_steps() -> None:
    results = {"erm": {10: pairwise(3), 20: pairwise(4)}, "sam": {10: pairwise(5)}}
    for of, attribute in (("distance", "mean_distance"), ("cosine", "mean_cosine")):
        found = plain(diversity(results, of, at="epoch"))
        assert [trace["name"] for trace in found["data"]] == ["erm", "sam"]
        assert found["data"][0]["x"] == [10, 20]
        assert found["data"][0]["y"] == [getattr(pairwise(3), attribute), getattr(pairwise(4), attribute)]
        assert found["layout"]["xaxis"]["title"]["text"] == "epoch"
        assert of in found["layout"]["yaxis"]["title"]["text"]


def test_layers_of_one_model_are_down_and_those_of_the_other_across() -> None:
    result = comparison(3, 9)
    found = plain(cka(result, ("one", "other")))
    assert found["data"][0]["z"] == numbers(result.values)
    assert found["layout"]["xaxis"]["ticktext"] == [f"layer{i}" for i in range(9)]
    assert found["layout"]["yaxis"]["title"]["text"] == "layer of one"
    assert found["layout"]["xaxis"]["title"]["text"] == "layer of other"
    assert found["data"][0]["customdata"][2][4] == f"{result.layers_a[2]} · layer4"
    assert all(name.startswith("…") and len(name) == 22 for name in found["layout"]["yaxis"]["ticktext"])
    many = plain(cka(comparison(30)))["layout"]
    assert len(many["yaxis"]["tickvals"]) == len(many["yaxis"]["ticktext"]) <= 24
    assert many["xaxis"]["ticktext"][1] == "3"  # every second of them, by number


def test_entropies_have_their_errors() -> None:
    found = plain(entropy({"erm": local_entropy(0.4), "sam": local_entropy(0.3)}))
    assert [(trace["y"], trace["x"], trace["error_x"]["array"]) for trace in found["data"]] == [
        ([0], [0.4], [0.02]),
        ([1], [0.3], [0.02]),
    ]
    assert found["layout"]["yaxis"]["ticktext"] == ["erm", "sam"]
    assert "σ = 0.1" in found["layout"]["xaxis"]["title"]["text"]
    over = plain(entropy({"erm": [local_entropy(0.4, 0.1), local_entropy(math.nan, 0.2)]}))
    assert over["data"][0]["x"] == [0.1, 0.2]
    assert over["data"][0]["y"] == [0.4, None]
    assert over["data"][0]["error_y"]["array"] == [0.02, 0.02]
    assert over["layout"]["xaxis"]["tickvals"] == [0.1, 0.2]


def test_lines_have_loss_and_accuracy() -> None:
    found = plain(segment(line(), ends=("first", "last")))
    loss, accuracy = found["data"]
    assert loss["x"] == accuracy["x"] == list(line().positions)
    assert loss["y"] == list(line().loss)
    assert accuracy["y"] == pytest.approx([100 * value for value in line().accuracy])
    assert accuracy["yaxis"] == "y2"
    assert "0: first · 1: last" in found["layout"]["xaxis"]["title"]["text"]
    assert len(plain(segment(line(judged=False)))["data"]) == 1
    broken = plain(segment({"a": line(broken=True), "b": line()}))
    assert broken["data"][0]["y"][-1] is None
    assert "1 point without a finite loss" in broken["layout"]["xaxis"]["title"]["text"]


def test_planes_have_contours_and_their_three_corners() -> None:
    result = ground(broken=True)
    found = plain(plane(result, names=("one", "two", "three")))
    contour, *corners = found["data"]
    assert (contour["x"], contour["y"]) == (list(result.x), list(result.y))
    assert contour["customdata"] == numbers(result.loss)
    assert contour["z"] == numbers(result.loss.log10())  # from 0.2 to 12
    assert "3 points without a finite loss" in found["layout"]["xaxis"]["title"]["text"]
    assert [(each["x"], each["y"]) for each in corners] == [([x], [y]) for x, y in result.corners]
    assert [each["marker"]["symbol"] for each in corners] == ["circle", "square", "diamond"]
    labels = [each["text"] for each in found["layout"]["annotations"]]
    assert labels == ["one <b>0.2</b>", "two <b>0.3</b>", "three <b>0.4</b>"]
    marks = dict(zip(contour["colorbar"]["ticktext"], contour["colorbar"]["tickvals"], strict=True))
    assert marks["0.5"] == pytest.approx(math.log10(0.5))
    assert found["layout"]["yaxis"]["scaleanchor"] == "x"


def test_planes_of_small_differences_are_not_logarithmic() -> None:
    result = ground(steep=0.01)
    (contour, *_) = plain(plane(result))["data"]
    assert contour["z"] == numbers(result.loss)
    assert contour["contours"]["size"] in (0.005, 0.01, 0.02)
    accuracy = plain(plane(ground(), "accuracy"))
    assert accuracy["data"][0]["z"] == numbers(100 * ground().accuracy)
    assert accuracy["layout"]["annotations"][2]["text"] == "w₃ <b>70</b>"
    with pytest.raises(ValueError, match="no accuracy"):
        plane(ground(judged=False), "accuracy")
    with pytest.raises(ValueError, match="three names"):
        plane(ground(), names=("a", "b"))
    level = ground(steep=0.0)
    assert plain(plane(level))["data"][0]["zmin"] == pytest.approx(0.2)
    assert plain(plane(ground(steep=math.nan)))["data"][0]["z"] == [[None] * 9] * 8


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in strings(each)]
    return [value] if isinstance(value, str) else []


def test_names_stay_text_in_every_figure() -> None:
    for section in sections():
        for figure in section.figures.values():
            assert not [text for text in strings(plain(figure)) if "<img" in text or "</script" in text]


def test_figures_use_colours_that_have_a_partner_on_dark() -> None:
    used = {
        text for section in sections() for figure in section.figures.values() for text in strings(plain(figure))
        if re.fullmatch(r"#[0-9a-fA-F]{3,8}|rgba?\(.*\)", text)
    }  # fmt: skip
    assert used
    assert used <= {*DARK, *VARIABLES}
    css = style_sheet()
    for colour, variable in VARIABLES.items():
        assert f"{variable}: {colour};" in css.split("@media")[0]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ground_", [0, 1], ids=["light", "dark"])
def test_scales_are_read_by_lightness_alone(ground_: int) -> None:
    """Whatever colours a reader sees, and in print: more is further from the page's ground."""
    steps = [luminance(stop[ground_]) for stop in SEQUENTIAL]
    assert steps == sorted(steps, reverse=ground_ == 0)
    assert all((max(a, b) + 0.05) / (min(a, b) + 0.05) > 1.15 for a, b in pairs(steps))
    both = [luminance(stop[ground_]) for stop in DIVERGING]
    low, high = both[: len(both) // 2 + 1], both[len(both) // 2 :]
    assert low == sorted(low, reverse=ground_ == 1)
    assert high == sorted(high, reverse=ground_ == 0)


def test_the_page_is_one_file_with_the_numbers_in_it(tmp_path: Path) -> None:
    path = write_page(tmp_path / "new" / "page.html", f"Title {EVIL}", sections())
    page = path.read_text()
    assert list(path.parent.iterdir()) == [path]
    assert "<img src=x" not in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page[: page.index("<script")])
    data = json.loads(re.search(r'<script type="application/json" id="steppe-data">(.*?)</script>', page, re.S)[1])
    expected = [plain(figure) for section in sections() for figure in section.figures.values()]
    assert data["figures"] == expected
    assert [int(number) for number in re.findall(r'data-figure="(\d+)"', page)] == list(range(len(expected)))
    again = write_page(tmp_path / "again.html", f"Title {EVIL}", sections())
    assert again.read_bytes() == path.read_bytes()


def test_a_figure_of_ones_own_cannot_end_the_script(tmp_path: Path) -> None:
    own = go.Figure(layout={"title": {"text": "</script><script>alert(1)</script>"}})
    page = write_page(tmp_path / "page.html", "title", [Section("one", {"own": own})]).read_text()
    assert "<script>alert" not in page
    data = json.loads(re.search(r'<script type="application/json" id="steppe-data">(.*?)</script>', page, re.S)[1])
    assert data["figures"] == [plain(own)]


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("the page before")
    with pytest.raises(ValueError, match="at least one section"):
        write_page(path, "none", [])
    with pytest.raises(AttributeError):
        write_page(path, "no figure", [Section("one", {"caption": object()})])
    assert path.read_text() == "the page before"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_page(tmp_path / "file" / "page.html", "title", [Section("one")])


def test_every_public_figure_is_on_the_page_that_is_looked_at() -> None:
    drawn = {"matrix", "diversity", "cka", "entropy", "segment", "plane"}
    assert drawn <= set(dir(figures))
