"""The page as text: whole, deterministic, safe against what names may hold, silent on the network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import write_benchmark, write_run

from steppe.errors import SteppeError
from steppe.look.palette import inks
from steppe.report import load_runs, summarise, write_page
from steppe.report.page import Extras

EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(2)>\'&amp;{{ 7*7 }}\u2028'


class Collector(HTMLParser):
    """Start tags with their attributes, and the text of scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


def parse(page: Path) -> Collector:
    collector = Collector()
    collector.feed(page.read_text(encoding="utf-8"))
    return collector


def data_of(collector: Collector) -> dict[str, Any]:
    content = json.loads(collector.scripts[0])
    assert isinstance(content, dict)
    return content


def test_the_default_place_and_another(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "runs", seeds=1)
    assert write_page(tmp_path / "runs") == tmp_path / "runs" / "report.html"
    elsewhere = tmp_path / "new" / "folder" / "page.html"
    assert write_page(tmp_path / "runs", elsewhere) == elsewhere
    assert elsewhere.read_bytes() == (tmp_path / "runs" / "report.html").read_bytes()
    assert [path.name for path in elsewhere.parent.iterdir()] == ["page.html"]


def test_no_finished_run_is_an_error_that_says_what_there_is(tmp_path: Path) -> None:
    write_run(tmp_path, finished=False)
    broken = write_run(tmp_path, seed=1)
    (broken / "result.json").write_text("{")
    with pytest.raises(SteppeError, match=r"(?s)nothing to report.*1 run not finished.*result\.json"):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "runs", seeds=1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SteppeError, match="file"):
        write_page(tmp_path / "runs", tmp_path / "file" / "page.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SteppeError, match="folder"):
        write_page(tmp_path / "runs", tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "runs"]


def test_the_data_are_the_numbers_of_the_files(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    data = data_of(parse(write_page(tmp_path)))
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/*/*/result.json")]
    assert set(data["runs"]) == {result["id"] for result in results}
    for result in results:
        shown = data["runs"][result["id"]]
        for name in ("held_out_accuracy", "held_out_accuracy_all", "in_domain_accuracy", "selected_step", "seed"):
            assert shown[name] == result[name]
        assert (tmp_path / shown["path"] / "result.json").is_file()
    (comparison,) = data["comparisons"]
    for method in comparison["methods"]:
        for domain, cell in method["cells"].items():
            values = [
                result["held_out_accuracy"]
                for result in results
                if (result["algorithm"], result["held_out"]) == (method["algorithm"], domain)
            ]
            assert cell["held_out"]["mean"] == pytest.approx(sum(values) / len(values))
            assert len(cell["held_out"]["runs"]) == len(values) == 3


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1, pictures_of_emoji=True)
    collector = parse(write_page(tmp_path))
    for tag, attributes in collector.tags:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert tag not in {"iframe", "object", "embed", "base"}
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    policy = next(a["content"] for tag, a in collector.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    harmless = tmp_path / "harmless"
    write_run(harmless, "method", "domain", domains=("domain", "other"), command="command", dataset_spec="set")
    expected = parse(write_page(harmless))

    evil = EVIL.replace("/", "∕")  # a folder's name cannot hold a slash, a command can
    write_run(
        tmp_path / "evil",
        evil,
        evil + "1",
        domains=(evil + "1", evil + "2"),
        command=EVIL,
        dataset_spec=EVIL,
        dataset=evil,
        optimizer=EVIL,
        hyper={EVIL: EVIL},
        result={"device": EVIL, "versions": {EVIL: EVIL}},
    )
    page = write_page(tmp_path / "evil")
    found = parse(page)
    assert [tag for tag, _ in found.tags if tag != "wbr"] == [tag for tag, _ in expected.tags if tag != "wbr"]
    assert len(found.scripts) == len(expected.scripts) == 3
    assert found.scripts[1:] == expected.scripts[1:]
    assert data_of(found)["comparisons"][0]["methods"][0]["algorithm"] == evil
    assert EVIL in "".join(found.text)
    source = page.read_text(encoding="utf-8")
    assert '<script>alert("1")' not in source
    assert "<img src=x" not in source
    assert "\u2028" not in re.search(r'id="steppe-data">(.*?)</script>', source, re.DOTALL).group(1)  # type: ignore[union-attr]


def test_with_one_seed_the_page_prints_no_spread(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1)
    text = " ".join(parse(write_page(tmp_path)).text)
    assert "±" not in text
    assert "not evidence" in text


def test_what_the_store_lacks_is_on_the_page_without_paths_of_this_machine(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1)
    write_run(tmp_path, "sam", "line", 4, finished=False)
    failed = write_run(tmp_path, "sam", "line", 5, finished=False)
    (failed / "failure.json").write_text(json.dumps({"error": "loss is NaN at step 3", "traceback": "..."}))
    broken = write_run(tmp_path, "sam", "line", 6)
    (broken / "result.json").write_text("{")
    mute = write_run(tmp_path, "sam", "line", 7)
    (mute / "metrics.jsonl").write_text("{")
    text = " ".join(parse(write_page(tmp_path)).text)
    assert "1 run not finished" in text
    assert "loss is NaN at step 3" in text
    for path in (broken / "result.json", mute / "metrics.jsonl"):
        assert path.relative_to(tmp_path).as_posix() in text
    assert str(tmp_path) not in text


def test_sensitivity_is_of_all_draws_where_the_tables_are_about_some(tmp_path: Path) -> None:
    for rho in (0.01, 0.05, 0.2):
        write_run(tmp_path, "sam", "line", accuracy=rho, hyper={"rho": rho})
    everything = load_runs(tmp_path)
    chosen = summarise([run for run in everything if run.held_out_accuracy == 0.05])
    alone = data_of(parse(write_page(tmp_path, summary=chosen)))["comparisons"][0]
    assert alone["sensitivities"] == []
    extras = Extras(drawn=summarise(everything))
    (found,) = data_of(parse(write_page(tmp_path, summary=chosen, extras=extras)))["comparisons"]
    assert [method["name"] for method in found["methods"]] == ["sam"]
    (line,) = found["sensitivities"][0]["lines"]
    assert [point["value"] for point in line["points"]] == [0.01, 0.05, 0.2]


def test_two_data_sets_have_a_section_each(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1)
    write_benchmark(tmp_path, seeds=1, dataset="photos")
    found = parse(write_page(tmp_path))
    sections = [a for tag, a in found.tags if tag == "section" and "data-comparison" in a]
    assert len(sections) == len(data_of(found)["comparisons"]) == 2
    identifiers = [a["id"] for _, a in found.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_every_run_is_in_the_table_of_runs(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=2)
    found = parse(write_page(tmp_path))
    rows = {a["data-id"] for tag, a in found.tags if tag == "tr" and "data-id" in a}
    assert rows == {run.id for run in load_runs(tmp_path)}
    named = {one for _, a in found.tags for one in (a.get("data-run") or "").split()}
    assert named <= rows
    assert rows <= named


@pytest.mark.parametrize("paper", ["light", "dark"])
def test_colours_can_be_seen_and_told_apart(paper: str) -> None:
    methods = ["erm", "sam", "asam", "gsam", "sagm", "disam", "disam+sagm", "coral", "mmd", "vrex"]
    chosen = inks(methods)
    background = {"light": "#fbfaf6", "dark": "#15181b"}[paper]
    for ink in chosen.values():
        assert _contrast(getattr(ink, paper), background) >= 3
    assert len({(ink.light, ink.turn) for ink in chosen.values()}) == len(methods)
    assert inks(["disam", "erm"]) == {name: chosen[name] for name in ("disam", "erm")}


def _contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("split", ["strict", "domainbed"])
def test_the_note_says_what_the_in_domain_pictures_were_used_for(tmp_path: Path, split: str) -> None:
    names = {"answer": "in", "in_domain": "out"} if split == "domainbed" else {}
    folder = write_run(tmp_path, split=split)
    result = json.loads((folder / "result.json").read_text())
    result["accuracy"]["line"]["in"] = result["held_out_accuracy"]
    (folder / "result.json").write_text(json.dumps(result | names))
    page = "".join(parse(write_page(tmp_path)).text)
    assert ("the pictures that also selected the checkpoint, so slightly optimistic" in page) == (split == "domainbed")
    assert ("kept out of training and of model selection" in page) == (split == "strict")
