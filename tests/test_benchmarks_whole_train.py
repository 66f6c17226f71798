"""The program that measures whole commands: real runs of steppe, a stand-in for DomainBed's checkout."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

TRAIN = """
import argparse, json, os, pathlib, sys, time
from domainbed import datasets

parser = argparse.ArgumentParser()
for name in ("data_dir", "dataset", "algorithm", "hparams", "output_dir"):
    parser.add_argument("--" + name)
for name in ("steps", "checkpoint_freq", "test_envs"):
    parser.add_argument("--" + name, type=int)
given = parser.parse_args()
assert given.dataset == "PACS" and given.algorithm == "ERM" and given.test_envs == 0
out = pathlib.Path(given.output_dir)
weights = pathlib.Path(os.environ["TORCH_HOME"], "hub", "checkpoints", "resnet18-f37072fd.pth")
called = pathlib.Path(__file__).with_name("called.jsonl")
with called.open("a") as file:
    folders = sorted(entry.name for entry in os.scandir(given.data_dir + "/PACS/") if entry.is_dir())
    facts = {"domains": folders, "workers": datasets.PACS.N_WORKERS, "weights": weights.stat().st_size}
    file.write(json.dumps({**facts, "hparams": json.loads(given.hparams), "steps": given.steps}) + "\\n")
if pathlib.Path(__file__).with_name("broken").exists():
    print("no room on the stand-in")
    sys.exit(3)
for step in range(given.steps):
    time.sleep(0.3)
    if step % given.checkpoint_freq == 0 or step == given.steps - 1:
        with open(out / "results.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "step_time": 0.25 if step else 1.0}) + "\\n")
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a module of the benchmarks, which are programs rather than a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the program needs of a checkout: a command with DomainBed's options that writes its records."""
    scripts = tmp_path / "checkout" / "domainbed" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "train.py").write_text(TRAIN)
    (scripts / "__init__.py").touch()
    (scripts.parent / "__init__.py").touch()
    (scripts.parent / "datasets.py").write_text("class PACS:\n    N_WORKERS = 8\n")
    return tmp_path / "checkout"


def pictures(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for domain in ("art", "photo", "sketch"):
        for name in ("cat", "dog"):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(5):
                noise = draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.jpg")
    return root


def program(checkout: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    out = checkout.parent / "whole.jsonl"
    command = [sys.executable, BENCHMARKS / "whole_train.py", "--domainbed", checkout, "--python", sys.executable]
    options = ["--out", out, "--folder", checkout.parent / "pictures", "--settings", "loading", "--batch", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *options, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_rounds_are_written_as_they_come_and_not_done_again(checkout: Path) -> None:
    pictures(checkout.parent / "pictures")
    out, called = checkout.parent / "whole.jsonl", checkout / "domainbed" / "scripts" / "called.jsonl"
    asked = ["--pictures", "24", "--every", "1", "--evaluations", "3", "--caches", "building", "warm"]
    first = program(checkout, *asked, "--rounds", "1", "--domainbed-workers", "2")
    assert first.returncode == 0, first.stderr

    (round_,) = (json.loads(line) for line in out.read_text().splitlines())
    taken = round_["taken"]
    names = ["DomainBed", "DomainBed, 2 workers a loader", "steppe, cache building", "steppe, cache warm"]
    assert list(taken) == names
    # Two sources, one picture each; 3 steps: 1 second for the first, a quarter for each of the others.
    assert taken["DomainBed"]["pictures_per_second"] == pytest.approx(3 * 2 / 1.5)
    for name in names:
        assert 0 < taken[name]["cycle"] < taken[name]["seconds"]
    for name in names[2:]:
        assert 0 < taken[name]["training"] < taken[name]["seconds"]
        assert taken[name]["own_gb"] > 0.1  # torch, the network and its gradients
    assert "24 pictures in 3 domains" in round_["task"]
    assert "3 steps, 3 evaluations" in round_["task"]

    calls = [json.loads(line) for line in called.read_text().splitlines()]
    assert [call["workers"] for call in calls] == [8, 2]
    assert calls[0]["domains"] == ["art", "photo", "sketch"]
    assert calls[0]["steps"] == 3
    assert calls[0]["weights"] > 4 * 11e6
    hparams = {"resnet18": True, "resnet50_augmix": False, "freeze_bn": True, "batch_size": 1, "lr": 5e-5}
    assert calls[0]["hparams"] == hparams

    rows = [line.split(" | ") for line in first.stdout.splitlines() if line.startswith("| resnet18")]
    assert [(row[1], row[2]) for row in rows] == [(cache, name) for cache in ("building", "warm") for name in names[:2]]
    assert f"{taken[names[0]]['seconds'] / taken[names[3]]['seconds']:.3f} [" in rows[2][3]

    # What is there is not measured again; a command that fails leaves it as it was.
    again = program(checkout, *asked, "--rounds", "1")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert len(called.read_text().splitlines()) == 2
    (called.parent / "broken").touch()
    before = out.read_text()
    failed = program(checkout, *asked, "--rounds", "2", "--caches", "off")
    assert failed.returncode == 1
    assert "no room on the stand-in" in failed.stderr
    assert "ended with 3" in failed.stderr
    assert out.read_text() == before


def test_what_is_needed_is_said_at_once(
    checkout: Path, load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, out = load("whole_train").main, str(checkout.parent / "whole.jsonl")

    def called(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["whole_train.py", *arguments])
        main()

    with pytest.raises(SystemExit, match="no checkout of DomainBed"):
        called("--domainbed", str(checkout.parent), "--python", sys.executable, "--out", out)
    with pytest.raises(SystemExit, match="give --domainbed, --python and --out"):
        called("--domainbed", str(checkout), "--python", sys.executable)
    with pytest.raises(SystemExit, match="2"):
        called("--evaluations", "2")
    assert "at least 3" in capsys.readouterr().err


def test_memory_of_all_processes_counts_what_they_share_once(load) -> None:
    child = (
        "import sys, time; from multiprocessing.shared_memory import SharedMemory\n"
        "held, shared = b'a' * 40_000_000, SharedMemory(sys.argv[1], track=False) if sys.version_info >= (3, 13) "
        "else SharedMemory(sys.argv[1])\n"
        "total = sum(shared.buf[::4096]); time.sleep(3)"
    )
    parent = (
        "import subprocess, sys; from multiprocessing.shared_memory import SharedMemory\n"
        "held, shared = b'a' * 40_000_000, SharedMemory(create=True, size=60_000_000)\n"
        "shared.buf[:] = b'a' * 60_000_000\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1], shared.name], check=True)\n"
        "shared.close()"
    )
    finished = load("process_tree").run([sys.executable, "-c", parent, child], environment={})
    # Beside 140 MB there are two or three interpreters (and 60 MB for a moment, while the segment is filled).
    assert 140e6 < finished.own < 195e6
    assert finished.processes >= 2
    assert finished.seconds > 3


def test_a_batch_that_nobody_maps_counts(load) -> None:
    program = "import os, time; os.write(os.memfd_create('batch'), b'a' * 50_000_000); time.sleep(1.5)"
    finished = load("process_tree").run([sys.executable, "-c", program], environment={})
    assert 50e6 < finished.own < 120e6


def test_marks_say_when_what_is_watched_grew(load, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = f"import time\nfor n in range(3):\n    time.sleep(0.5); open({str(log)!r}, 'a').write('x')"
    watched = lambda: log.stat().st_size if log.exists() else 0  # noqa: E731
    finished = load("process_tree").run([sys.executable, "-c", program], environment={}, watched=watched)
    assert len(finished.marks) == 3
    assert list(finished.marks) == sorted(finished.marks)
    assert finished.marks[0] >= 0.5
    assert finished.marks[2] <= finished.seconds


def test_a_command_ends_with_the_program_that_started_it(checkout: Path) -> None:
    pictures(checkout.parent / "pictures")
    slow = checkout / "domainbed" / "scripts" / "train.py"
    slow.write_text(
        "import os, pathlib, time\npathlib.Path(__file__).with_name('id').write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, BENCHMARKS / "whole_train.py", "--domainbed", checkout, "--python", sys.executable]
    options = ["--out", checkout.parent / "o.jsonl", "--folder", checkout.parent / "pictures", "--batch", "1"]
    options += ["--settings", "loading"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    written = slow.with_name("id")
    try:
        while not (written.exists() and written.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    number = int(written.read_text())
    assert not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


def test_what_a_run_took_follows_from_its_record(load) -> None:
    sides = load("whole_train_sides")
    task = sides.Task(Path("w"), "resnet18", 4, 3, "art", every=10, evaluations=4, device="cpu")
    assert task.steps == 31
    finished = load("process_tree").Finished(
        100.0, 2_000_000_000, 500_000_000, 1_500_000_000, 9, (5.0, 30.0, 50.0, 74.0)
    )
    records = [(1, 9.0), (11, 1.0), (21, 2.0), (31, 3.0)]
    taken = sides.taken(task, finished, records, cycles=finished.marks[1:])
    assert taken["training"] == pytest.approx(9 + 10 + 20 + 30)
    assert taken["pictures_per_second"] == pytest.approx(31 * 12 / 69)
    assert taken["cycle"] == pytest.approx(22.0)
    assert (taken["seconds"], taken["processes"]) == (100.0, 9)
    assert (taken["own_gb"], taken["files_gb"], taken["machine_gb"]) == (2.0, 0.5, 1.5)


def test_the_table_has_ratios_within_rounds_and_marks_what_misses_its_target(load) -> None:
    def took(seconds: float, speed: float) -> dict[str, Any]:
        memory = {"own_gb": 1.0, "files_gb": 0.5, "machine_gb": 1.2, "processes": 3}
        return {"seconds": seconds, "cycle": seconds / 10, "training": 1.0, "pictures_per_second": speed, **memory}

    common = {"machine": "m", "versions": "v", "date": "d", "commit": "c", "theirs": "t", "setting": "loading"}
    figures = [
        {
            **common,
            "task": "few steps",
            "load": 0.1,
            "taken": {"DomainBed": took(a, 10), "steppe, cache off": took(b, 8), "steppe, cache warm": took(c, 20)},
        }
        for a, b, c in ((100, 100, 50), (200, 160, 100), (120, 100, 40))
    ]
    rows = [line.split(" | ") for line in load("whole_train").markdown(figures).splitlines() if "| resnet18" in line]
    assert [row[1] for row in rows] == ["off", "warm"]
    assert rows[0][3] == "**1.200 [1.000, 1.250]** (≥ 1.3)"
    assert rows[1][3] == "2.000 [2.000, 3.000] (≥ 1.3)"
    assert rows[1][4] == "120, 50"
    assert rows[0][7].startswith("0.800")
    assert rows[1][7].startswith("2.000")
    other = load("whole_train").markdown([{**figure, "setting": "network"} for figure in figures])
    rows = [line.split(" | ") for line in other.splitlines() if line.startswith("| resnet50, network binds")]
    assert [row[3] for row in rows] == ["1.200 [1.000, 1.250] (≥ 1.0)", "2.000 [2.000, 3.000] (≥ 1.0)"]


def test_both_evaluate_as_often(load) -> None:
    sides = load("whole_train_sides")
    for every in (1, 2, 7, 300):
        for evaluations in (3, 4, 9):
            task = sides.Task(Path("w"), "resnet50", 8, 3, "art", every=every, evaluations=evaluations, device="cpu")
            theirs = [s for s in range(task.steps) if s % every == 0 or s == task.steps - 1]
            ours = [s for s in range(1, task.steps + 1) if s % every == 0 or s == task.steps]
            # Where every step is evaluated both agree anyway.
            assert len(theirs) == len(ours) == evaluations
