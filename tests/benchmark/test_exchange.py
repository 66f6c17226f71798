"""Runs that travel: archives that are whole or passed over, and the newest wins."""

from __future__ import annotations

import hashlib
import random
import tarfile
from pathlib import Path

import pytest
from small_sweeps import Watching, planned

from steppe.benchmark.executors.cluster import RayExecutor
from steppe.benchmark.executors.exchange import Archive, Exchange, exchange_name
from steppe.errors import SteppeError


def run(root: Path, lines: int, *, state: bytes | None = b"state", result: bool = False) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metrics.jsonl").write_text("{}\n" * lines)
    (root / ".lock").write_text("")
    if state is not None:
        (root / "state.pt").write_bytes(state + str(lines).encode())
    if result:
        (root / "result.json").write_text("{}")
    return root


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if not path.name.startswith(".")}


@pytest.fixture(params=["file", "memory"])
def exchange(request: pytest.FixtureRequest, tmp_path: Path) -> Exchange:
    return Exchange({"file": f"file://{tmp_path}/exchange", "memory": f"memory://{tmp_path.name}"}[request.param])


def test_what_was_pushed_is_pulled_and_later_ones_replace_earlier(exchange: Exchange, tmp_path: Path) -> None:
    exchange.check()
    exchange.pull("r", tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    for lines in (3, 8, 11):
        exchange.push("r", run(tmp_path / "there", lines))
        exchange.pull("r", tmp_path / "here")
        assert content(tmp_path / "here") == content(tmp_path / "there")
    assert len(exchange._archives("r")) == 1, "earlier ones are deleted"
    exchange.push("r", run(tmp_path / "finished", 11, state=None, result=True))
    exchange.pull("r", tmp_path / "here")
    assert content(tmp_path / "here") == content(tmp_path / "finished"), "the checkpoint is gone with the result"
    exchange.clear("r")
    assert exchange._archives("r") == []


def test_a_failure_after_the_last_checkpoint_arrives(exchange: Exchange, tmp_path: Path) -> None:
    there = run(tmp_path / "there", 5)
    exchange.push("r", there)
    (there / "failure.json").write_text("{}")
    exchange.push("r", there)
    exchange.pull("r", tmp_path / "here")
    assert (tmp_path / "here" / "failure.json").exists()


def test_an_archive_that_was_cut_off_or_changed_is_passed_over(tmp_path: Path) -> None:
    exchange = Exchange(f"file://{tmp_path}/exchange")
    chance = random.Random(0)
    exchange.push("r", run(tmp_path / "good", 3))
    (good,) = (tmp_path / "exchange" / "r").iterdir()
    kept = good.read_bytes()
    exchange.push("r", run(tmp_path / "newer", 9))
    (newer,) = (tmp_path / "exchange" / "r").iterdir()
    whole = newer.read_bytes()
    good.write_bytes(kept)
    for _ in range(20):
        damaged = bytearray(whole)
        if chance.random() < 0.5:
            del damaged[chance.randrange(len(damaged)) :]
        else:
            damaged[chance.randrange(len(damaged))] ^= 1
        newer.write_bytes(damaged)
        here = tmp_path / f"here-{chance.random()}"
        exchange.pull("r", here)
        assert content(here) == content(tmp_path / "good")


def test_what_is_further_here_is_kept(exchange: Exchange, tmp_path: Path) -> None:
    exchange.push("r", run(tmp_path / "there", 5))
    here = run(tmp_path / "here", 6)
    before = content(here)
    exchange.pull("r", here)
    assert content(here) == before
    exchange.push("r", run(tmp_path / "behind", 2), unless_known=True)
    assert [archive.lines for archive in exchange._archives("r")] == [5]
    exchange.push("r", here, unless_known=True)
    assert [archive.lines for archive in exchange._archives("r")] == [6]


def test_a_worker_given_up_for_lost_takes_nothing_away(exchange: Exchange, tmp_path: Path) -> None:
    exchange.push("r", run(tmp_path / "finished", 11, state=None, result=True))
    exchange.push("r", run(tmp_path / "lost", 7))
    exchange.pull("r", tmp_path / "here")
    assert content(tmp_path / "here") == content(tmp_path / "finished")


def test_only_plain_files_with_plain_names_are_unpacked(tmp_path: Path) -> None:
    exchange = Exchange(f"file://{tmp_path}/exchange")
    packed = tmp_path / "packed.tar"
    (tmp_path / "evil").write_text("evil")
    with tarfile.open(packed, "w") as archive:
        archive.add(tmp_path / "evil", arcname="../../escaped")
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    name = Archive(0, 1, 1, hashlib.sha256(packed.read_bytes()).hexdigest()).name
    (tmp_path / "exchange" / "r").mkdir(parents=True)
    packed.rename(tmp_path / "exchange" / "r" / name)
    exchange.pull("r", tmp_path / "deep" / "down" / "here")
    assert not list(tmp_path.glob("deep/escaped"))
    assert [path.name for path in (tmp_path / "deep" / "down" / "here").iterdir()] == ["escaped"]


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(1, 20, 3, "ab")
    assert Archive.named(archive.name) == archive
    for name in ("x.tar", "1-2-ab.tar", "1-2-3-ab", "1-x-3-ab.tar", "reached-from-here"):
        assert Archive.named(name) is None
    monkeypatch.chdir(tmp_path)
    assert exchange_name(Path("runs/abc")) == exchange_name(tmp_path / "runs" / "abc")
    assert exchange_name(Path("runs/abc")) != exchange_name(Path("other/abc"))


def test_an_exchange_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SteppeError, match=r"the exchange file://.* cannot be used from .* \(\w+Error"):
        Exchange(f"file://{tmp_path}/file/below").check()


def test_a_damaged_result_of_a_run_that_travels_is_kept_and_does_not_outrank_what_is_trained_anew(
    drawings: Path, tmp_path: Path
) -> None:
    (job,) = planned(drawings, tmp_path / "runs", seeds=1, algorithms=["erm"])
    run(job.directory, 24, state=None)
    (job.directory / "result.json").write_text("{")
    said = Watching()
    executor = object.__new__(RayExecutor)  # without a cluster: what it does with a store and an exchange
    executor.report, executor._locks = said, {}
    executor._exchange = exchange = Exchange(f"file://{tmp_path}/exchange")
    assert executor._take(job) is None
    assert (job.directory / "result.json.damaged").read_text() == "{"
    assert "it is kept as result.json.damaged, and the run is trained again" in said.said[0]

    name = exchange_name(job.directory)
    worker = tmp_path / "worker"
    exchange.pull(name, worker)
    exchange.push(name, run(worker, 2))  # its first checkpoint, before it is lost
    executor._give_back(job)
    executor._release(job)
    assert (job.directory / "state.pt").read_bytes() == b"state2"
    assert len((job.directory / "metrics.jsonl").read_text().splitlines()) == 2
