"""Large files over HTTP: continued after a break, begun anew where they have changed, and never taken for whole."""

from __future__ import annotations

import inspect
import socket
from pathlib import Path

import gdown
import numpy as np
import pytest
from range_server import Behaviour, serve

from steppe.data import download as module
from steppe.data.download import download, from_drive
from steppe.errors import SteppeError

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)


@pytest.fixture
def server(tmp_path: Path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "set.zip").write_bytes(CONTENT)
    with serve(tmp_path / "files") as (address, behaviour):
        yield f"{address}/set.zip", behaviour


def test_a_file(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    path = tmp_path / "new" / "set.zip"
    download(address, path)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["set.zip"]
    download(address, path)
    assert len(behaviour.asked) == 1, "what is there is not asked for again"


def test_a_bar_changes_nothing(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    behaviour.cuts, behaviour.cut_after = 1, 100_000
    download(address, tmp_path / "set.zip", progress=True)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_a_broken_connection_is_continued_in_the_same_call(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    behaviour.cuts, behaviour.cut_after = 2, 100_000
    download(address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert [wanted for _, wanted in behaviour.asked] == ["", "bytes=100000-", "bytes=200000-"]


@pytest.fixture
def cut(server: tuple[str, Behaviour], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What an interrupted download leaves of ``set.zip``: its first 70,000 bytes."""
    address, behaviour = server
    behaviour.cuts, behaviour.cut_after = 1, 70_000
    path = tmp_path / "set.zip"
    with monkeypatch.context() as patch:
        patch.setattr(module, "ATTEMPTS", 1)
        with pytest.raises(SteppeError, match=f"cannot fetch {address}: the connection ended before the file did"):
            download(address, path)
    assert not path.exists()
    assert (tmp_path / "set.zip.part").stat().st_size == 70_000
    return path


def test_a_part_is_continued_by_a_later_call(server: tuple[str, Behaviour], cut: Path) -> None:
    address, behaviour = server
    download(address, cut)
    assert cut.read_bytes() == CONTENT
    assert behaviour.asked[-1][1] == "bytes=70000-"


def test_a_part_of_another_version_is_not_continued(server: tuple[str, Behaviour], cut: Path) -> None:
    address, behaviour = server
    changed = CONTENT[::-1]
    (behaviour.folder / "set.zip").write_bytes(changed)
    download(address, cut)
    assert cut.read_bytes() == changed


def test_a_server_that_knows_no_ranges_begins_anew(server: tuple[str, Behaviour], cut: Path) -> None:
    address, behaviour = server
    behaviour.ranges = False
    download(address, cut)
    assert cut.read_bytes() == CONTENT


def test_without_the_servers_name_for_the_version_it_begins_anew(server: tuple[str, Behaviour], cut: Path) -> None:
    address, behaviour = server
    (cut.parent / "set.zip.part.version").write_text("")
    (cut.parent / "set.zip.part").write_bytes(b"of another file")
    download(address, cut)
    assert cut.read_bytes() == CONTENT
    assert behaviour.asked[-1][1] == ""


def test_a_part_that_is_the_whole_file(server: tuple[str, Behaviour], cut: Path) -> None:
    """The process ended between the last byte and the renaming."""
    address, behaviour = server
    (cut.parent / "set.zip.part").write_bytes(CONTENT)
    download(address, cut)
    assert cut.read_bytes() == CONTENT
    assert behaviour.asked[-1][1] == "bytes=300000-"


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, behaviour = server
    behaviour.failures = [503, 429]
    download(address, tmp_path / "set.zip")
    assert len(behaviour.asked) == 3
    behaviour.failures = [403]
    with pytest.raises(SteppeError, match=rf"cannot fetch {address}: Forbidden \(403\)"):
        download(address, tmp_path / "other.zip")
    assert len(behaviour.asked) == 4
    behaviour.failures = [500] * 9
    with pytest.raises(SteppeError, match=r"Internal Server Error \(500\)"):
        download(address, tmp_path / "other.zip")
    assert len(behaviour.asked) == 4 + module.ATTEMPTS


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SteppeError, match=rf"cannot fetch http://127\.0\.0\.1:{port}/x: .*refused"):
        download(f"http://127.0.0.1:{port}/x", tmp_path / "x")


def test_a_folder_that_cannot_be_written(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SteppeError, match=f"cannot write {tmp_path}/file/set.zip: "):
        download(server[0], tmp_path / "file" / "set.zip")


class TestDrive:
    """gdown itself, on a server of this machine: it takes any address."""

    def test_a_file(self, server: tuple[str, Behaviour], tmp_path: Path) -> None:
        from_drive(server[0], tmp_path / "set.zip")
        assert (tmp_path / "set.zip").read_bytes() == CONTENT

    def test_a_refusal(self, server: tuple[str, Behaviour], tmp_path: Path) -> None:
        server[1].failures = [404] * 9
        with pytest.raises(SteppeError, match=f"cannot fetch {server[0]}: "):
            from_drive(server[0], tmp_path / "set.zip")
        assert not (tmp_path / "set.zip").exists()

    def test_addresses_of_drive_go_to_gdown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stand-in with the real one's parameters hands out a file."""
        called = {}
        parameters = inspect.signature(gdown.download)

        def stand_in(*arguments: object, **named: object) -> str:
            called.update(parameters.bind(*arguments, **named).arguments)
            Path(str(called["output"])).write_bytes(CONTENT)
            return str(called["output"])

        monkeypatch.setattr(gdown, "download", stand_in)
        download("https://drive.google.com/uc?id=abc", tmp_path / "set.zip")
        assert (called["url"], called["resume"]) == ("https://drive.google.com/uc?id=abc", True)
        assert (tmp_path / "set.zip").read_bytes() == CONTENT

    def test_what_google_says_when_it_refuses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refusing(**named: object) -> str:
            raise gdown.exceptions.FileURLRetrievalError("Too many users\n have viewed the file")

        monkeypatch.setattr(gdown, "download", refusing)
        with pytest.raises(SteppeError, match="id=abc: Too many users have viewed the file"):
            download("https://drive.google.com/uc?id=abc", tmp_path / "set.zip")

    def test_without_gdown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "gdown", None)
        with pytest.raises(SteppeError, match=r"is not installed: pip install 'steppe\[data\]'"):
            download("https://drive.google.com/uc?id=abc", tmp_path / "set.zip")
