"""A real Ray cluster of several nodes on this machine, whose nodes and workers are really killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_sweeps import (
    ALGORITHMS,
    MACHINE,
    OPTIONS,
    Watching,
    assert_trained_once,
    checkpoints,
    finish,
    left,
    names,
    planned,
    undisturbed,
)

from steppe.benchmark.executors.cluster import RayExecutor
from steppe.data import open_dataset
from steppe.errors import SteppeError
from steppe.training import Interrupted

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

NODE = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}


@pytest.fixture(scope="module")
def whole(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a sweep that nothing disturbed, in one process."""
    root = tmp_path_factory.mktemp("whole")
    undisturbed(drawings, root)
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head, where the driver is and nothing is trained, and two nodes with one core each."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="ray-")  # short: the paths of sockets have a limit
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)
        patch.setattr("steppe.benchmark.executors.remote.LOOK_SECONDS", 0.05)  # the runs are short
        from ray.cluster_utils import Cluster

        started = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        for _ in range(2):
            started.add_node(**NODE)
        yield started
        started.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    assert not actors()


def actors() -> list[psutil.Process]:
    """The processes of this test's workers."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if (process.info["cmdline"] or [""])[0].startswith("ray::Actor") and process.info["status"] != "zombie"
    ]


def remote(drawings: Path, cluster: Any, report: Watching, **options: Any) -> RayExecutor:
    return RayExecutor(open_dataset(drawings), MACHINE, report, "test", address=cluster.address, **options)


def test_a_node_is_killed_and_another_joins_in_mid_sweep(
    cluster: Any, drawings: Path, whole: Path, tmp_path: Path
) -> None:
    moments = random.Random(6)
    killed: list[str] = []

    def happens(place: int, what: str, step: int) -> None:
        if not killed and len(report.begun) == 2:
            killed.append(what)
            time.sleep(moments.uniform(0, 0.2))
            cluster.remove_node(moments.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False)
            cluster.add_node(wait=False, **NODE)

    report = Watching(happens)
    runs = planned(drawings, tmp_path)
    with remote(drawings, cluster, report) as executor:
        outcomes = finish(executor, runs)
        assert {outcome.status for outcome in outcomes} == {"finished"}
        assert executor._workers()
    assert killed
    lost = [line for line in report.said if "was lost" in line]
    assert len(lost) == 1, report.said
    again = [name for name, _ in report.begun]
    for name in names(runs):
        assert again.count(name) <= 1 + sum(line.startswith(name) for line in lost), "done twice"
    assert_trained_once(runs)
    assert left(tmp_path) == left(whole)
    assert not list(tmp_path.rglob(".driver-*"))


def test_runs_travel_where_nodes_share_no_disk_through_a_signal_and_a_killed_worker(
    cluster: Any, drawings: Path, whole: Path, tmp_path: Path
) -> None:
    exchange, root = tmp_path / "exchange", tmp_path / "runs"
    runs = planned(drawings, root)

    def interrupt(place: int, what: str, step: int) -> None:
        if first.happened == 0 and step >= 4:
            first.happened = 1
            os.kill(os.getpid(), signal.SIGINT)

    first = Watching(interrupt)
    with (
        remote(drawings, cluster, first, jobs=1, exchange=f"file://{exchange}") as executor,
        pytest.raises(Interrupted),
    ):
        finish(executor, runs)
    assert first.said == ["stopping: 1 run writes its checkpoint"]
    assert len(list(checkpoints(root))) == 1, "it came back to the store"
    assert not list(root.rglob("failure.json"))

    def kill(place: int, what: str, step: int) -> None:
        if second.happened == 0 and step >= 8:
            second.happened = 1
            (victim,) = actors()
            victim.kill()

    second = Watching(kill)
    with remote(drawings, cluster, second, jobs=1, exchange=f"file://{exchange}") as executor:
        assert {outcome.status for outcome in finish(executor, runs)} == {"finished"}
    assert second.happened == 1
    assert second.begun[0][1] >= 4, "it went on from the checkpoint that the signal left"
    assert_trained_once(runs)
    assert left(root) == left(whole)
    assert not [path for path in exchange.rglob("*") if path.is_file()]


def test_more_than_any_node_has_is_said_at_once(cluster: Any, drawings: Path) -> None:
    for options, message in (
        (
            {"cores_per_run": 3},
            "a run asks for 3 cores, and no node of the Ray cluster has more than 1: lower --cores-p",
        ),
        ({"memory_per_run": 10**15}, r"asks for 1000000\.0 GB of memory, and no node .*: lower --memory-per-run"),
    ):
        with pytest.raises(SteppeError, match=message):
            remote(drawings, cluster, Watching(), **options)


ALONE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def test_without_a_cluster_and_without_a_network_there_is_a_ray_of_its_own(
    drawings: Path, whole: Path, tmp_path: Path
) -> None:
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace without a network can be made here")
    command = [
        sys.executable,
        "-c",
        "from steppe.cli import main; main()",
        "bench",
        drawings,
        "--algorithms",
        *ALGORITHMS,
    ]
    command += ["--held-out", "line", "--seeds", "2", "--out", tmp_path, "--executor", "ray", "--jobs", "1", *OPTIONS]
    script = 'ip link set lo up && "$@"; status=$?; sleep 1; ps -eo stat,comm | grep -v "^Z" >&2; exit $status'
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        done = subprocess.run(
            [*ALONE, "sh", "-c", script, "sh", *map(str, command)],
            capture_output=True,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": folder},
            check=False,
        )
    assert done.returncode == 0, done.stderr + done.stdout
    for program in ("raylet", "gcs_server", "ray::", "python"):
        assert program not in done.stderr, "a process was left behind"
    assert left(tmp_path) == left(whole)
