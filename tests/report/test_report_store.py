"""Reading a store: what counts as finished, and that nothing is dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import write_benchmark, write_run

from steppe.errors import SteppeError
from steppe.report import UnreadableFile, load_runs


def test_finished_runs_are_exactly_those_with_a_result(tmp_path: Path) -> None:
    done = write_run(tmp_path, "sam", "line", 0, accuracy=0.31)
    unfinished = write_run(tmp_path, "sam", "line", 1, finished=False)
    failed = write_run(tmp_path, "sam", "line", 2, finished=False)
    (failed / "failure.json").write_text(json.dumps({"error": "loss is NaN at step 3", "traceback": "..."}))
    runs = load_runs(tmp_path)
    assert [run.path for run in runs] == [done]
    assert runs.unfinished == [unfinished]
    assert [(item.path, item.message) for item in runs.failures] == [(failed, "loss is NaN at step 3")]
    assert runs.problems == []
    assert (runs[0].algorithm, runs[0].held_out, runs[0].seed, runs[0].held_out_accuracy) == ("sam", "line", 0, 0.31)


def test_a_failure_that_was_overcome_is_no_failure(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "failure.json").write_text(json.dumps({"error": "disk full", "traceback": "..."}))
    runs = load_runs(tmp_path)
    assert len(runs) == 1
    assert runs.failures == []


def test_a_failure_before_the_config_was_written_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "emoji" / "sam" / "line" / "0123456789ab"
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"error": "out of memory", "traceback": "..."}))
    assert [item.path for item in load_runs(tmp_path).failures] == [folder]


@pytest.mark.parametrize("name", ["result.json", "config.json"])
@pytest.mark.parametrize("content", [b"{broken", b"", b"[1, 2]", b"\xff\xfe\x00", b'{"version": 1}'])
def test_a_broken_file_is_named_and_the_others_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    broken = write_run(tmp_path, seed=0)
    whole = write_run(tmp_path, seed=1)
    (broken / name).write_bytes(content)
    runs = load_runs(tmp_path)
    assert [run.path for run in runs] == [whole]
    assert len(runs.problems) == 1
    assert runs.problems[0].path.parent == broken
    assert str(broken) in str(runs.problems[0])
    assert str(tmp_path) not in runs.problems[0].below(tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 3}, "version"),
        ({"held_out_accuracy": 1.2}, "held_out_accuracy"),
        ({"held_out_accuracy": float("nan")}, "held_out_accuracy"),
        ({"held_out_accuracy": 0.4}, "held_out_accuracy"),  # is not the accuracy on the split that answers
        ({"held_out_accuracy": True}, "held_out_accuracy"),
        ({"in_domain_accuracy": None}, "in_domain_accuracy"),
        ({"seconds_per_step": float("inf")}, "seconds_per_step"),
        ({"seed": "0"}, "seed"),
        ({"seed": 7}, "seed"),  # the config says 0
        ({"algorithm": "sam"}, "algorithm"),
        ({"accuracy": {"line": 0.5}}, "held_out_accuracy"),
    ],
)
def test_a_result_that_cannot_be_is_a_problem(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    folder = write_run(tmp_path, accuracy=0.5, result=change)
    runs = load_runs(tmp_path)
    assert list(runs) == []
    assert [item.path for item in runs.problems] == [folder / "result.json"]
    assert word in runs.problems[0].message


def test_a_copied_run_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    copy = folder.with_name("copy")
    copy.mkdir()
    for name in ("config.json", "result.json"):
        (copy / name).write_bytes((folder / name).read_bytes())
    runs = load_runs(tmp_path)
    assert len(runs) == 1
    assert len(runs.problems) == 1
    assert str(folder) in str(runs.problems[0])
    assert str(copy) in str(runs.problems[0])


def test_a_part_of_a_store_is_a_store(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1)
    assert len(load_runs(tmp_path / "emoji" / "sam")) == 2


def test_loading_opens_only_the_small_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "metrics.jsonl").unlink()
    (folder / "predictions.json").unlink()
    (run,) = load_runs(tmp_path)
    with pytest.raises(UnreadableFile, match=r"metrics\.jsonl.*missing"):
        run.metrics()
    with pytest.raises(UnreadableFile, match=r"predictions\.json.*missing"):
        run.predictions()


def test_a_broken_line_of_metrics_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    lines = len((folder / "metrics.jsonl").read_text().splitlines())
    (run,) = load_runs(tmp_path)
    with pytest.raises(UnreadableFile, match=f"line {lines}"):
        run.metrics()


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match="no folder of runs"):
        load_runs(tmp_path / "nowhere")
