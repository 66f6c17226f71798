"""What a worker makes sure of before its first run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from small_sweeps import MACHINE, Watching, planned

from steppe import __version__
from steppe.benchmark.executors import process
from steppe.benchmark.executors.bench import WorkBench
from steppe.benchmark.executors.events import Mailbox, Setup, Telling, Told
from steppe.benchmark.executors.local import LocalProcesses
from steppe.data import open_dataset
from steppe.errors import SteppeError


@pytest.fixture
def setup(drawings: Path) -> Iterator[Setup]:
    """What a driver in this process would say."""
    dataset = open_dataset(drawings)
    with warnings.catch_warnings():
        yield Setup(MACHINE, "test", dataset.spec, dataset.fingerprint(), None, __version__)


def test_another_data_set_or_another_steppe_is_refused(setup: Setup) -> None:
    with pytest.raises(SteppeError, match=r"is not the one that the sweep was started with .*: copy it anew"):
        WorkBench(replace(setup, fingerprint="0" * 16), Watching())
    with pytest.raises(SteppeError, match=rf"steppe is {__version__} on .* and 0\.0\.9 where the sweep was started"):
        WorkBench(replace(setup, version="0.0.9"), Watching())
    with pytest.raises(SteppeError, match="there is no folder"):
        WorkBench(replace(setup, spec="/no/such/folder"), Watching())


def test_warnings_become_lines(setup: Setup) -> None:
    report = Watching()
    WorkBench(setup, report)
    warnings.warn("the learning rate is odd", stacklevel=1)
    (line,) = report.said
    assert line.endswith("UserWarning: the learning rate is odd")
    assert Path(__file__).name in line


def test_of_steps_that_nobody_looked_at_only_the_last_is_kept() -> None:
    mailbox = Mailbox()
    telling = Telling(mailbox.put)
    telling.INTERVAL = 0.0
    telling.begin("erm", step=0, total=9)
    for step in range(1, 5):
        telling.advance(step, 0.5)
    telling.say("half")
    telling.advance(5, 0.25)
    first, *rest = mailbox.take()
    assert first == Told("begin", ("erm",), (("step", 0), ("total", 9)))
    assert rest == [Told("advance", (4, 0.5)), Told("say", ("half",)), Told("advance", (5, 0.25))]
    assert mailbox.take() == []


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise RuntimeError('out of luck')", r"ended with status 1 \(RuntimeError: out of luck\)"),
        ("import os; os.write(2, b'core dumped'); os.abort()", r"was killed by SIGABRT \(core dumped\)"),
        ("import os, signal; os.kill(0, signal.SIGKILL)", "was killed by SIGKILL$"),
    ],
)
def test_workers_that_do_not_come_up_end_the_sweep_with_their_last_words(
    program: str, reason: str, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_PROGRAM", program)
    executor = LocalProcesses(open_dataset(drawings), MACHINE, Watching(), "test", jobs=1)
    with executor, pytest.raises(SteppeError, match=f"no worker comes up, 3 tries in a row: its worker {reason}"):
        list(executor.run(planned(drawings, tmp_path)))
