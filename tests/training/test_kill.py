"""Real processes, really killed, at random moments and in the midst of every write."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from killed_runs import train, train_until_write
from small_runs import outputs, process, small_config

from steppe.training import Trainer

CASES: dict[str, dict[str, Any]] = {
    "erm with sgd and momentum": {"algorithm": "erm", "optimizer": "sgd", "lr": 0.01, "momentum": 0.9},
    "penalties and references with adamw": {
        "algorithm": "fishr+groupdro+tram",
        "dropout": 0.2,
        "hyper": {"fishr.weight": 1.0, "anneal_steps": 9},
    },
    "mixture, means and schedules with adamw": {
        "algorithm": "mixup+disam+tram-ema+looksam",
        "dropout": 0.2,
        "schedule": "cosine",
        "warmup": 2,
        "hyper": {"every": 3, "tram-ema.decay": 0.9},
    },
    "rounds": {
        "algorithm": "disam+sagm+lookahead-mean",
        "dropout": 0.2,
        "schedule": "cosine",
        "hyper": {
            "k": 6,
            "anchor": 0.1,
            "anchor_reduction": "sum",
            "lookahead-mean.state": "pullback",
            "bn_batches": 2,
        },
    },
    "a valley": {
        "algorithm": "tram+swad",
        "optimizer": "sgd",
        "eval_every": 3,
        "hyper": {"n_converge": 2, "n_tolerance": 2, "bn_batches": 2},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_it_ends_with_the_same_bits(case: str, drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, **{"steps": 20, "eval_every": 10, **CASES[case]})
    train(config, tmp_path / "whole", 4)
    moments = random.SystemRandom()
    run, killed = tmp_path / "killed", []
    for number in range(5):
        # A checkpoint every second step. One child is killed some time after its first, the next while it starts.
        before = last_written(run)
        child = process(train, config, run, 2)
        while number % 2 == 0 and child.exitcode is None and last_written(run) == before:
            time.sleep(0.002)
        delay = moments.uniform(0, 0.1)
        time.sleep(delay)
        child.kill()
        child.join()
        if child.exitcode == -signal.SIGKILL:
            killed.append(round(delay, 3))
    assert len(killed) >= 3
    last = process(train, config, run, 2)
    last.join()
    assert last.exitcode == 0, killed
    assert outputs(run) == outputs(tmp_path / "whole"), f"killed so long after checkpoint or start: {killed}"


def last_written(run: Path) -> int | None:
    state = run / "state.pt"
    return state.stat().st_mtime_ns if state.exists() else None


@pytest.mark.slow
def test_killed_in_the_midst_of_every_write_it_ends_with_the_same_bits(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, algorithm="fishr+disam", steps=2, eval_every=1, hyper={"anneal_steps": 1})
    Trainer(config, out=tmp_path / "whole", command="test").fit()
    expected = outputs(tmp_path / "whole")
    for count in range(100):
        run = tmp_path / str(count)
        child = process(train_until_write, config, run, count)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        Trainer(config, out=run, command="test").fit()
        assert outputs(run) == expected, f"killed in write {count}"
    # config, two checkpoints after their log, weights, predictions, result: each is synced, renamed, synced.
    assert count == 3 * 6 + 2


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_signal_saves_and_stops(signum: int, drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, algorithm="sam", steps=300, eval_every=150)
    run = tmp_path / "run"
    child = process(train, config, run, None)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert child.exitcode is None
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signum)
    child.join()
    assert child.exitcode != 0
    assert (run / "state.pt").exists(), "the first evaluation was far away: the signal saved this"
    assert not (run / "result.json").exists()
