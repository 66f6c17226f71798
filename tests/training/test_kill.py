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
    "sam with adamw": {"algorithm": "sam", "schedule": "cosine", "warmup": 2},
    "disam with adamw": {"algorithm": "disam", "dropout": 0.2},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_it_ends_with_the_same_bits(case: str, drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, steps=30, eval_every=10, **CASES[case])
    begin = time.monotonic()
    whole = process(train, config, tmp_path / "whole", 4)
    whole.join()
    assert whole.exitcode == 0
    duration = time.monotonic() - begin
    moments = random.SystemRandom()
    run = tmp_path / "killed"
    killed, history = 0, []
    for attempt in range(40):
        # A checkpoint every second step: progress is certain, and many kills fall into one.
        child = process(train, config, run, 2)
        delay = None if killed >= 6 or attempt == 39 else moments.uniform(0, duration)
        child.join(delay)
        if child.exitcode is None:
            child.kill()
            child.join()
            assert child.exitcode == -signal.SIGKILL
            killed += 1
            history.append(round(delay or 0, 3))
            continue
        assert child.exitcode == 0, history
        if killed >= 3:
            break
        killed, history = 0, []  # it was done before it was killed often enough: once more
        for path in run.iterdir():
            path.unlink()
    assert killed >= 3
    assert outputs(run) == outputs(tmp_path / "whole"), f"killed after {history} seconds"


@pytest.mark.slow
def test_killed_in_the_midst_of_every_write_it_ends_with_the_same_bits(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, algorithm="disam", steps=4, eval_every=2)
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
