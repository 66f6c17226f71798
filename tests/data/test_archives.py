"""Archives: members go where they are told, damage is found, nothing leaves the folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from miniatures import tarred, zipped

from steppe.data.archives import BrokenArchiveError, unpack
from steppe.errors import SteppeError

FILES = {"top/a/1.bin": np.random.default_rng(1).bytes(40_000), "top/a/2.bin": b"", "top/b/3.bin": b"three"}
MAKERS = {"set.zip": zipped, "set.tar.gz": tarred}
every = pytest.mark.parametrize("name", MAKERS)


def everything(member: str) -> tuple[str, ...]:
    return (member.removeprefix("top/"),)


@every
def test_all_of_it(name: str, tmp_path: Path) -> None:
    archive = MAKERS[name](tmp_path / name, FILES)
    assert unpack(archive, tmp_path / "out", everything) == 3
    found = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")
    }
    assert found == {path.removeprefix("top/"): content for path, content in FILES.items()}


def test_a_tar_that_is_not_compressed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        member = tarfile.TarInfo("top/x")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    assert unpack(tmp_path / "set.tar", tmp_path / "out", everything) == 1
    assert (tmp_path / "out/x").read_bytes() == b"abc"


@every
def test_several_places_and_none(name: str, tmp_path: Path) -> None:
    archive = MAKERS[name](tmp_path / name, FILES)
    places = {"top/a/1.bin": ("x/1", "y/1"), "top/b/3.bin": ()}
    assert unpack(archive, tmp_path / "out", lambda member: places.get(member, ())) == 2
    assert (tmp_path / "out/x/1").read_bytes() == (tmp_path / "out/y/1").read_bytes() == FILES["top/a/1.bin"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x", "y"]
    assert unpack(archive, tmp_path / "out", lambda member: places.get(member, ())) == 2, "over what is there"


@every
@pytest.mark.parametrize("damage", ["cut", "changed", "page", "empty"])
def test_what_is_not_whole(name: str, damage: str, tmp_path: Path) -> None:
    archive = MAKERS[name](tmp_path / name, FILES)
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    if damage == "changed":
        content[middle] ^= 0xFF
    damaged = {"cut": content[:middle], "changed": content, "page": b"<html>Sign in</html>", "empty": b""}[damage]
    archive.write_bytes(bytes(damaged))
    with pytest.raises(BrokenArchiveError, match=rf"{archive} is not a whole archive \(.+\); a server that refuses"):
        unpack(archive, tmp_path / "out", everything)


@pytest.mark.parametrize("end", [1, 8, 700])
def test_a_tar_that_lacks_its_end(end: int, tmp_path: Path) -> None:
    """All members may be there, and the checksum still not."""
    archive = tarred(tmp_path / "set.tar.gz", FILES)
    archive.write_bytes(archive.read_bytes()[:-end])
    with pytest.raises(BrokenArchiveError, match="is not a whole archive"):
        unpack(archive, tmp_path / "out", everything)


@every
@pytest.mark.parametrize("outside", ["../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", ""])
def test_nothing_goes_outside(name: str, outside: str, tmp_path: Path) -> None:
    archive = MAKERS[name](tmp_path / name, {"member": b"x"})
    with pytest.raises(SteppeError, match="would go outside of the folder"):
        unpack(archive, tmp_path / "out", lambda member: (outside,))
    assert not (tmp_path / "escaped").exists()


def test_links_in_an_archive_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("top/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert unpack(tmp_path / "set.tar.gz", tmp_path / "out", everything) == 0
    assert not (tmp_path / "out").exists()


@every
def test_a_place_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    archive = MAKERS[name](tmp_path / name, FILES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("in the way")
    with pytest.raises(SteppeError, match=f"cannot write {tmp_path}/out/a/1.bin: "):
        unpack(archive, tmp_path / "out", everything)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_no_fault_of_the_archive(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "set.zip", {"top/a": b"x" * 100_000})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to("/dev/full")
    with pytest.raises(SteppeError, match=f"cannot write {tmp_path}/out/a: No space left on device"):
        unpack(archive, tmp_path / "out", everything)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"top/a": b"x"})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (member,) = [each for each in archive.infolist() if not each.is_dir()]
    content[member.header_offset + 6] |= 1
    place = content.rindex(b"PK\x01\x02")
    content[place + 8] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BrokenArchiveError, match="is not a whole archive"):
        unpack(path, tmp_path / "out", everything)
