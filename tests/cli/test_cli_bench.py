"""`steppe bench`, `demo` and `report`."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import SMALL
from rich.console import Console

from steppe.benchmark.presets import DEMO
from steppe.cli import run, sweep
from steppe.training.progress import Display

UNTIMED = dict.fromkeys(("seconds", "seconds_per_step", "finished", "command"))


def test_bench_trains_once_prints_a_table_and_writes_a_page(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "runs"
    arguments = ["bench", str(drawings), "--algorithms", "erm", "disam", "--seeds", "2", "--out", str(out), *SMALL]
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert "8 runs\n" in text
    assert "disam" in text
    assert (out / "report.html").exists()
    assert str(out / "report.html") in text
    results = sorted(out.rglob("result.json"))
    assert len(results) == 8
    content = json.loads(results[0].read_text())
    assert content["command"].startswith(f"steppe bench {drawings} --algorithms erm disam")
    stamps = [path.stat().st_mtime_ns for path in results]

    assert run([*arguments[:6], "3", *arguments[7:]]) == 0
    assert "12 runs, of which 8 finished already" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in results] == stamps

    assert run(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert str(tmp_path / "page.html") in capsys.readouterr().out
    assert (tmp_path / "page.html").exists()


def test_bench_says_which_runs_failed(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    wild = ["--optimizer", "sgd", "--seeds", "1", "--out", str(out), *SMALL, "--lr", "1e30"]
    assert run(["bench", str(drawings), "--algorithms", "erm", "--held-out", "line", *wild]) == 1
    text = capsys.readouterr().out
    (failure,) = out.rglob("failure.json")
    assert "not finite" in text
    assert str(failure) in text


@pytest.mark.parametrize("damage", ["{bad", "{}", "[]"])
def test_a_damaged_result_is_named_and_made_again(
    damage: str, drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    options = ["--held-out", "line", "--out", str(out), *SMALL, "--steps", "1", "--eval-every", "1"]
    assert run(["train", str(drawings), *options]) == 0
    (path,) = out.rglob("result.json")
    whole = {**json.loads(path.read_text()), **UNTIMED}
    path.write_text(damage)
    capsys.readouterr()
    assert run(["report", str(out)]) == 2
    assert str(path) in capsys.readouterr().err
    assert run(["bench", str(drawings), "--algorithms", "erm", "sam", "--seeds", "1", *options]) == 0
    text = capsys.readouterr().out
    assert "2 runs, of which 1 with a damaged result, to be made again\n" in text
    assert str(path) in text
    assert "it is kept as result.json.damaged, and the run is trained again" in text
    assert len(list(out.rglob("result.json"))) == 2
    assert {**json.loads(path.read_text()), **UNTIMED} == whole
    assert path.with_name("result.json.damaged").read_text() == damage
    path.unlink()
    assert run(["bench", str(drawings), "--algorithms", "erm", "sam", "--seeds", "1", *options]) == 0
    assert "2 runs, of which 1 finished already, 1 to be continued" in capsys.readouterr().out


def test_names_and_paths_appear_as_they_are(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    root = shutil.copytree(drawings, tmp_path / "pics [old] :cat:")
    (root / "noto").rename(root / "cam[a]")
    (root / "line").rename(root / "cam[red]")
    for domain in root.iterdir():
        (domain / "face").rename(domain / "[x]")
    out = tmp_path / "rs[" / "x] [bold]"
    options = ["--held-out", "cam[a]", "--out", str(out), *SMALL, "--steps", "1", "--eval-every", "1"]
    assert run(["train", str(root), *options]) == 0
    text = capsys.readouterr().out
    assert "cam[a] held out" in text
    assert "held out, cam[a]:" in text
    assert f"  {out}/pics [old] :cat:/erm/cam[a]/" in text
    assert run(["bench", str(root), "--algorithms", "erm", "--seeds", "1", *options]) == 0
    text = capsys.readouterr().out
    assert "pics [old] :cat:: 32 pictures" in text
    assert "(cam[a], cam[red])" in text
    assert "1 run, of which 1 finished already" in text
    assert f"page: {out}/report.html" in text
    page = tmp_path / "rp [new].html"
    assert run(["report", str(out), "--out", str(page)]) == 0
    assert f"page: {page}" in capsys.readouterr().out
    assert run(["data", "check", str(root)]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("cam[a]", "cam[red]", "[x]"))
    assert run(["data", "sheet", str(root), "--out", str(tmp_path / "sheet [a].png")]) == 0
    assert "sheet [a].png" in capsys.readouterr().out


def test_bars_show_names_as_they_are() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, markup=True)
    with Display(console, runs=1) as display:
        display.begin("erm, cam[a] held out, [/x]", step=0, total=2)
    assert isinstance(console.file, io.StringIO)
    assert "erm, cam[a] held out, [/x]" in console.file.getvalue()


def test_the_demo_with_a_tiny_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(DEMO.settings, backbone="test_resnet", pretrained=False, image_size=32, batch_per_domain=2)
    monkeypatch.setattr(sweep, "DEMO", replace(DEMO, settings=settings))
    assert run(["demo", "--steps", "1", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {(r["algorithm"], r["held_out"]) for r in found} == set(itertools.product(DEMO.algorithms, DEMO.held_out))
    assert {r["steps"] for r in found} == {1}
    assert str(tmp_path / "report.html") in text
    assert "±" not in text, "one seed has no spread"
    assert run(["demo", "--steps", "1", "--out", str(tmp_path), "--seeds", "2"]) == 0
    assert "±" in capsys.readouterr().out
