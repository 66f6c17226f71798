"""The cache of a large store: quicker, never wrong, and nothing is lost with it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import write_benchmark, write_run

from steppe.report import Runs, UnreadableFile, index, load_runs, reading, summarise
from steppe.report.index import NAME, Index


@pytest.fixture(autouse=True)
def _worth_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WORTH", 1)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of runs that were opened, as they are."""
    found: list[Path] = []
    read = reading.read_text

    def noted(path: Path) -> str:
        found.append(path)
        return read(path)

    monkeypatch.setattr(index, "read_text", noted)
    monkeypatch.setattr(reading, "read_text", noted)
    return found


def told(runs: Runs) -> list[Any]:
    """Everything that was read, in order."""
    return [(run.path, dict(run.config), dict(run.result)) for run in runs]


def same(one: Runs, other: Runs) -> bool:
    return told(one) == told(other) and [str(p) for p in one.problems] == [str(p) for p in other.problems]


def test_the_second_time_no_run_is_opened_and_everything_is_as_before(tmp_path: Path, opened: list[Path]) -> None:
    write_benchmark(tmp_path)
    first = load_runs(tmp_path)
    assert len(opened) == 2 * len(first) == 36
    summary = summarise(first)
    opened.clear()
    second = load_runs(tmp_path)
    assert opened == []
    assert summarise(second).comparisons == summary.comparisons  # settings in the same order too
    assert [list(run.config) for run in second] == [list(run.config) for run in first]
    assert same(second, first)


def test_what_is_read_is_what_the_files_say(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=2, validation_domain="noto")
    for _ in range(2):
        for run in load_runs(tmp_path):
            assert dict(run.result) == json.loads((run.path / "result.json").read_text())
            assert dict(run.config) == json.loads((run.path / "config.json").read_text())


@pytest.mark.parametrize("field", ["result.json", "config.json"])
def test_a_run_that_has_changed_is_read_again(tmp_path: Path, opened: list[Path], field: str) -> None:
    write_benchmark(tmp_path, seeds=1)
    victim = load_runs(tmp_path)[0].path
    for name in ("result.json", "config.json"):
        content = json.loads((victim / name).read_text())
        content["seed"] = 7
        if name == field:  # one in place, one by rename, as steppe writes
            (victim / name).write_text(json.dumps(content))
        else:
            (victim / "new").write_text(json.dumps(content))
            (victim / "new").rename(victim / name)
    opened.clear()
    runs = load_runs(tmp_path)
    assert {path.parent for path in opened} == {victim}
    assert sorted(run.seed for run in runs) == [0, 0, 0, 0, 0, 7]


def test_a_change_that_leaves_size_and_time_is_seen_where_the_file_was_renamed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, accuracy=0.25)
    load_runs(tmp_path)
    path = folder / "result.json"
    times = path.stat()
    text = path.read_text().replace("0.25", "0.75")
    (folder / "new").write_text(text)
    os.utime(folder / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
    (folder / "new").rename(path)
    assert path.stat().st_size == times.st_size
    assert [run.held_out_accuracy for run in load_runs(tmp_path)] == [0.75]


def test_a_run_that_was_deleted_is_gone_and_leaves_the_index_with_the_next_one(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1)
    gone = load_runs(tmp_path)[0]
    shutil.rmtree(gone.path)
    assert gone.id not in [run.id for run in load_runs(tmp_path)]
    write_run(tmp_path, "asam", "line", 5)
    load_runs(tmp_path)
    assert gone.id not in (tmp_path / NAME).read_text()


def test_a_result_that_was_deleted_makes_the_run_unfinished(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    load_runs(tmp_path)
    (folder / "result.json").unlink()
    runs = load_runs(tmp_path)
    assert list(runs) == []
    assert runs.unfinished == [folder]


def test_a_run_that_was_damaged_since_is_a_problem(tmp_path: Path) -> None:
    folder, whole = write_run(tmp_path, seed=0), write_run(tmp_path, seed=1)
    load_runs(tmp_path)
    (folder / "result.json").write_text("{")
    runs = load_runs(tmp_path)
    assert [run.path for run in runs] == [whole]
    assert [problem.path for problem in runs.problems] == [folder / "result.json"]


def test_what_did_not_pass_is_not_in_the_index(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    bad = write_run(tmp_path, seed=1, result={"held_out_accuracy": 1.2})
    for _ in range(2):
        runs = load_runs(tmp_path)
        assert len(runs) == 1
        assert [problem.path.parent for problem in runs.problems] == [bad]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "noise", "other rules", "directory", "wrong shape"])
def test_a_damaged_index_is_as_good_as_none(tmp_path: Path, opened: list[Path], damage: str) -> None:
    write_benchmark(tmp_path, seeds=1)
    before = load_runs(tmp_path)
    path = tmp_path / NAME
    content = path.read_bytes()
    digest, _, body = content.partition(b"\n")
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flipped":  # still JSON, another number
        at = body.index(b'"held_out_accuracy":0.') + 22
        path.write_bytes(digest + b"\n" + body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        json.loads(path.read_bytes().partition(b"\n")[2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "noise":
        path.write_bytes(os.urandom(5000))
    elif damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        changed = body.replace(b'"rules":[1', b'"rules":[9') if damage == "other rules" else b'{"rules":3}'
        assert changed != body
        path.write_bytes(hashlib.sha256(changed).hexdigest().encode() + b"\n" + changed)
    opened.clear()
    after = load_runs(tmp_path)
    assert len(opened) == 12
    assert same(after, before)


def test_a_store_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)

    def refuse(*arguments: object) -> None:
        raise index.OutputError("read-only")

    monkeypatch.setattr(index, "write_atomically", refuse)
    assert len(load_runs(tmp_path)) == 1
    assert not (tmp_path / NAME).exists()


def test_a_small_store_gets_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    write_benchmark(tmp_path)
    load_runs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["emoji"]


def test_a_store_that_was_moved_is_read_where_it_is(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "here", seeds=1)
    load_runs(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    runs = load_runs(tmp_path / "there")
    assert len(runs) == 6
    assert all(run.path.is_dir() for run in runs)


def test_tables_of_checkpoints_stay_in_their_files_and_are_read_when_asked_for(
    tmp_path: Path, opened: list[Path]
) -> None:
    rows = [{"step": 50, "held_out_accuracy": 0.5}]
    folder = write_run(tmp_path, result={"checkpoints": rows})
    for _ in range(2):
        (run,) = load_runs(tmp_path)
        opened.clear()
        assert run.result["selected_step"] == 150
        assert "checkpoints" in run.result
        assert "checkpoints" in list(run.result)
        assert len(run.result) == len(json.loads((folder / "result.json").read_text()))
        assert opened == []
        assert run.result["checkpoints"] == rows
        assert run.result.get("nothing") is None
        assert opened == [folder / "result.json"]
    assert b"checkpoints" not in (tmp_path / NAME).read_bytes().replace(b'["checkpoints"', b"")
    (folder / "result.json").write_text("{}")
    with pytest.raises(UnreadableFile, match="has changed"):
        run.result["checkpoints"]


def test_runs_share_what_they_have_in_common(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=3)
    for _ in range(2):
        runs = load_runs(tmp_path)
        assert len({id(run.config["hyper"]) for run in runs}) == 3  # one for each algorithm
        assert len({id(run.result["versions"]) for run in runs}) == 6  # and held-out domain: other counts


def test_an_index_knows_what_it_opened(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    one = Index(tmp_path)
    assert len(list(one.load([folder]))) == 1
    one.save()
    assert one.opened == 1
    other = Index(tmp_path)
    assert len(list(other.load([folder]))) == 1
    assert other.opened == 0


@pytest.mark.parametrize("portion", [1, 2, 5, 1000])
def test_threads_that_read_ahead_change_neither_order_nor_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    write_benchmark(tmp_path, seeds=3)
    folders = sorted(path.parent for path in tmp_path.rglob("result.json"))
    (folders[3] / "result.json").write_text("{")
    (folders[7] / "config.json").unlink()
    reference = load_runs(tmp_path)
    (tmp_path / NAME).unlink()
    monkeypatch.setattr(index, "PORTION", portion)
    monkeypatch.setattr(index, "AHEAD", 3)
    for _ in range(2):
        found = load_runs(tmp_path)
        assert same(found, reference)
        assert [run.path for run in found] == [path for path in folders if path not in (folders[3], folders[7])]
        assert [problem.path.parent for problem in found.problems] == [folders[3], folders[7]]
