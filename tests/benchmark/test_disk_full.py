"""A disk that is really full, at every size it can have: named, nothing lost, and the same bits once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_sweeps import MACHINE, STEPS, Watching, assert_trained_once, finish, left, planned, undisturbed

from steppe.benchmark.executor import InProcess
from steppe.benchmark.executors.local import LocalProcesses
from steppe.data import open_dataset
from steppe.training import OutputError


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory, whose size :func:`resize` sets."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.slow
def test_whatever_does_not_fit_is_named_and_made_good_when_there_is_room(
    drawings: Path, disk: Path, tmp_path: Path
) -> None:
    # One checkpoint, at the end: where there are several, the old and the new one together are the most there ever is.
    plan: dict[str, Any] = {"seeds": 1, "algorithms": ["erm"], "eval_every": STEPS}
    machine = replace(MACHINE, checkpoint_every=None)
    (whole,) = undisturbed(drawings, tmp_path / "whole", **plan)
    step = (whole.directory / "model.safetensors").stat().st_size // 3
    planned_runs = planned(drawings, disk / "runs", **plan)
    failed: list[str] = []
    for size in range(64 * 1024, 40 * step, step):
        resize(disk, size)
        message = ""
        try:
            (outcome,) = InProcess(open_dataset(drawings), machine, Watching(), "test").run(planned_runs)
        except OutputError as error:
            message = str(error)
        if not message:
            break
        assert "no space left: free some, then give the same command again" in message
        failed.append(Path(message.split()[2]).name)
        assert not (planned_runs[0].directory / "result.json").exists()
        assert not (planned_runs[0].directory / "failure.json").exists(), "it is the disk's fault, not the run's"
        assert not list(disk.rglob("*.part")), "room that nobody can use"
    assert outcome.status == "finished"
    assert "state.pt" in failed
    assert {"model.safetensors", "predictions.json", "result.json"} & set(failed), failed
    assert_trained_once(planned_runs)
    assert left(disk / "runs") == left(tmp_path / "whole")


@pytest.mark.slow
def test_a_worker_on_a_full_disk_stops_the_sweep_with_that_reason(drawings: Path, disk: Path) -> None:
    runs = planned(drawings, disk / "runs", seeds=1)
    with (
        LocalProcesses(open_dataset(drawings), MACHINE, Watching(), "test", jobs=1) as executor,
        pytest.raises(OutputError, match="no space left: free some, then give the same command again"),
    ):
        finish(executor, runs)
    assert not list(disk.rglob("failure.json"))
    resize(disk, 1 << 28)
    here = InProcess(open_dataset(drawings), MACHINE, Watching(), "test")
    assert {outcome.status for outcome in finish(here, runs)} == {"finished"}
    assert_trained_once(runs)
