from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from steppe.benchmark.execution import Execution, make_executor
from steppe.benchmark.executor import InProcess
from steppe.benchmark.store import Store
from steppe.data import open_dataset
from steppe.errors import SteppeError
from steppe.training import Machine
from steppe.training.progress import Silent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 2}, "--jobs is for --executor local or --executor ray, and the executor is inprocess: add --exec"),
        ({"executor": "local", "address": "auto"}, "--address is for --executor ray, and the executor is local"),
        ({"executor": "local", "exchange": "s3://b"}, "--exchange is for --executor ray"),
        ({"executor": "local", "jobs": 0}, "jobs must be at least 1, got 0"),
        ({"executor": "ray", "cores_per_run": 0}, "cores_per_run must be at least 1"),
        ({"executor": "ray", "gpus_per_run": 2.0}, "at most 1, as a run trains on one device"),
        ({"executor": "local", "memory_per_run": "much"}, "such as 6GB or 500MB, got 'much'"),
        ({"executor": "ray", "retries": -1}, "retries must be at least 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SteppeError, match=message):
        Execution(**options)


def make(**options: Any) -> Any:
    return make_executor(Execution(**options), open_dataset("emoji"), Machine(device="cpu"), Silent(), "test")


def test_nothing_said_is_this_process() -> None:
    with make() as executor:
        assert isinstance(executor, InProcess)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    with pytest.raises(SteppeError, match=r"needs Ray, which is not installed: pip install 'steppe\[ray\]'"):
        make(executor="ray")


def test_an_address_at_which_nothing_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can answer there
        port = taken.getsockname()[1]
        with pytest.raises(SteppeError, match=f"no Ray cluster answers at 127.0.0.1:{port} .*ray start --head --port"):
            make(executor="ray", address=f"127.0.0.1:{port}")
    for address in ("ray://head:10001", "head", "head:"):
        with pytest.raises(SteppeError, match="--address takes host:port"):
            make(executor="ray", address=address)


def test_an_exchange_of_which_nobody_knows() -> None:
    with pytest.raises(SteppeError, match="cannot use the address stone-tablets://cave"):
        make(executor="ray", exchange="stone-tablets://cave")


def test_a_store_is_a_folder() -> None:
    with pytest.raises(SteppeError, match=r"the store of runs is a folder.* --exchange s3://"):
        Store(Path("s3://bucket/runs")).create()
