"""What goes wrong with a cache of decoded pictures costs time and never a pixel: kills, full disks, damage, rivals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from photos import everything, make_photos, reader, run_python

from steppe.data import CacheOptions, ImageFolders, check_dataset, decoded_pictures, decoded_problems
from steppe.data.decoded import DecodedPictures
from steppe.data.decoded_build import Budget, build, build_lock, contents
from steppe.data.decoded_files import FOOTER, Shard
from steppe.data.decoded_places import cache_places
from steppe.data.pictures import read_picture

ON = CacheOptions("on")
SHARD = 16_000  # four of these pictures

BUILD = """
import sys
from pathlib import Path
from photos import dying, half_written, reader
import os
from steppe.data.decoded_build import Budget, build
from steppe.data.decoded_files import ShardWriter
from steppe.data.folders import ImageFolders
directory, root, kind, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], [int(sys.argv[4])]
if kind == "sync":
    os.fsync = dying(os.fsync, count)
if kind == "rename":
    Path.replace = dying(Path.replace, count)
if kind == "write":
    ShardWriter._write = half_written(ShardWriter._write, count)
photos = ImageFolders(root)
print(build(directory, root, photos.files(), reader(photos), Budget(10**9, spare=0, shard=16_000)))
"""


@pytest.fixture
def photos(tmp_path: Path) -> ImageFolders:
    return make_photos(tmp_path / "photos")


@pytest.fixture
def kept(photos: ImageFolders) -> DecodedPictures:
    return opened(photos)


def opened(photos: ImageFolders, says: list[str] | None = None) -> DecodedPictures:
    found = decoded_pictures(photos, ON, say=[].append if says is None else says.append)
    assert isinstance(found, DecodedPictures)
    return found


def held(dataset: DecodedPictures) -> int:
    return sum(map(dataset.held, dataset.domains))


def check(directory: Path, root: Path) -> int:
    """Every picture that the cache says it has is the file's; returns how many there are."""
    found = contents(directory)
    assert not found.damaged
    for key, (shard, entry) in found.found.items():
        assert np.array_equal(shard.file.pixels(*entry[2:5]), np.asarray(read_picture(root / key)))
    return len(found.found)


@pytest.mark.parametrize(
    ("kind", "count", "there"),
    [
        ("write", 0, 0),
        ("write", 3, 0),
        ("write", 4, 0),  # the first shard's table
        ("write", 7, 4),
        ("sync", 0, 0),
        ("sync", 1, 4),  # of the directory
        ("sync", 4, 8),
        ("rename", 0, 0),
        ("rename", 3, 12),
    ],
)
def test_a_build_that_is_killed_goes_on(
    photos: ImageFolders, tmp_path: Path, kind: str, count: int, there: int
) -> None:
    directory = tmp_path / "cache"
    child = run_python(BUILD, directory, photos.root, kind, count)
    assert child.wait(60) == -signal.SIGKILL, child.stderr.read()
    assert check(directory, photos.root) == there
    before = {path.name for path in directory.glob("*.pixels")}
    assert build(directory, photos.root, photos.files(), reader(photos), Budget(10**9, spare=0, shard=SHARD)) == ""
    assert check(directory, photos.root) == 16
    assert before < {path.name for path in directory.iterdir()}
    assert not list(directory.glob(".*"))  # the half-written file is gone
    assert {path.suffix for path in directory.iterdir()} == {".pixels", ""}


@pytest.mark.slow
def test_kills_at_any_moment_leave_only_true_pictures(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "many", each=60, size=(200, 150))
    directory = tmp_path / "cache"
    draw = np.random.default_rng(0)
    for _ in range(8):
        child = run_python(BUILD.replace("16_000", "400_000"), directory, photos.root, "none", 0)
        time.sleep(float(draw.uniform(0.25, 0.6)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        check(directory, photos.root)
    assert build(directory, photos.root, photos.files(), reader(photos), Budget(10**9, spare=0)) == ""
    assert check(directory, photos.root) == 240
    assert not list(directory.glob(".*"))


def test_several_processes_build_one_cache(photos: ImageFolders, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    children = [run_python(BUILD, directory, photos.root, "none", 0) for _ in range(4)]
    for child in children:
        assert child.wait(60) == 0, child.stderr.read()
    assert check(directory, photos.root) == 16
    entries = [entry.key for shard in contents(directory).shards for entry in shard.entries]
    assert sorted(entries) == sorted(photos.files())  # none of them twice


def test_who_comes_second_waits_and_says_so(photos: ImageFolders, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    told = []
    with build_lock(directory):
        child = run_python(BUILD, directory, photos.root, "none", 0)
        time.sleep(1.0)
        assert child.poll() is None
    assert child.wait(60) == 0
    with build_lock(directory, lambda: told.append(1)):
        assert told == []


def test_a_cache_that_is_deleted_while_another_waits_is_made_anew(photos: ImageFolders, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    with build_lock(directory):
        child = run_python(BUILD, directory, photos.root, "none", 0)
        time.sleep(1.0)
        assert child.poll() is None
        shutil.rmtree(directory)
    assert child.wait(60) == 0, child.stderr.read()
    assert check(directory, photos.root) == 16


def test_readers_see_whole_shards_while_one_builds(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "many", each=40, size=(120, 90))
    directory = tmp_path / "cache"
    child = run_python(BUILD.replace("16_000", "100_000"), directory, photos.root, "none", 0)
    seen = set()
    while child.poll() is None:
        seen.add(check(directory, photos.root))
    assert child.returncode == 0
    assert check(directory, photos.root) == 160
    assert seen <= set(range(161))


# --- damage ---


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def shard_of(kept: DecodedPictures) -> Path:
    (path,) = kept.directory.glob("*.pixels")
    return path


def test_a_damaged_picture_is_decoded_and_its_shard_made_again(photos: ImageFolders, kept: DecodedPictures) -> None:
    path = shard_of(kept)
    entry = Shard(path).entries[5]
    level = path.read_bytes()[entry.offset + 7]
    overwrite(path, entry.offset + 7, bytes([level ^ 1]))
    assert decoded_problems(photos) == (f"{path} is damaged (at {entry.key}): delete it",)
    assert check_dataset(photos.root) == decoded_problems(photos)
    damaged = opened(photos)
    with pytest.warns(UserWarning, match=r"is damaged: its pictures are decoded in this run"):
        assert everything(damaged) == everything(photos)
    assert held(damaged) == 0
    assert not path.exists()
    again = opened(photos)
    assert held(again) == 16
    assert everything(again) == everything(photos)
    assert decoded_problems(photos) == ()


@pytest.mark.parametrize("length", [0, 5, 10_000, -1, -FOOTER.size, -FOOTER.size - 1])
def test_a_shard_that_was_cut_short_is_made_again(photos: ImageFolders, kept: DecodedPictures, length: int) -> None:
    path = shard_of(kept)
    os.truncate(path, length if length >= 0 else path.stat().st_size + length)
    assert decoded_problems(photos) == (f"{path} is no whole shard of decoded pictures: delete it",)
    again = opened(photos)
    assert held(again) == 16
    assert not path.exists()
    assert everything(again) == everything(photos)


@pytest.mark.parametrize("from_end", [1, 12, 20, FOOTER.size, FOOTER.size + 3])
def test_a_damaged_table_is_noticed(photos: ImageFolders, kept: DecodedPictures, from_end: int) -> None:
    path = shard_of(kept)
    overwrite(path, path.stat().st_size - from_end, b"\x91")
    assert held(opened(photos)) == 16
    assert not path.exists()
    assert everything(opened(photos)) == everything(photos)


def test_files_that_are_none_of_ours_are_left_alone(photos: ImageFolders, kept: DecodedPictures) -> None:
    (kept.directory / "notes.txt").write_text("mine")
    (kept.directory / "000000.pixels").write_text("mine too")
    assert held(opened(photos)) == 16
    assert {"notes.txt", "000000.pixels"} < {path.name for path in kept.directory.iterdir()}


def test_a_picture_that_cannot_be_decoded_is_not_in_the_cache(photos: ImageFolders) -> None:
    (photos.root / "north" / "cat" / "001.jpg").write_bytes(b"no picture")
    kept = opened(photos)
    assert held(kept) == 15
    with pytest.raises(Exception, match=r"001\.jpg: it is not a picture"):
        kept.image("north", 1)


# --- no room, no rights ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=False).returncode:
        pytest.skip("no file system can be mounted here; the limit on a file's size stands in for it")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # some shard may still be mapped


@pytest.fixture
def many(tmp_path: Path) -> ImageFolders:
    """3.6 MB, decoded."""
    return make_photos(tmp_path / "many", each=30, size=(100, 100))


def test_a_full_disk_keeps_what_fits(many: ImageFolders, small_disk: Path) -> None:
    directory = small_disk / "cache"
    reason = build(directory, many.root, many.files(), reader(many), Budget(10**9, spare=0, shard=300_000))
    assert reason in ("no space is left on the disk", "the disk is nearly full")
    assert 40 < check(directory, many.root) < 70
    assert not list(directory.glob(".*"))


def test_a_disk_that_others_fill_meanwhile(many: ImageFolders, small_disk: Path) -> None:
    """Room was there when it was asked for, and is not when it is written to."""
    directory = small_disk / "cache"

    class Unaware(Budget):
        def room(self, directory: Path) -> int:
            return 10**9

    reason = build(directory, many.root, many.files(), reader(many), Unaware(10**9, shard=300_000))
    assert reason == "no space is left on the disk"
    assert 40 < check(directory, many.root) < 70
    assert not list(directory.glob(".*"))
    assert build(directory, many.root, many.files(), reader(many), Unaware(10**9, shard=300_000)) == reason
    check(directory, many.root)


def test_the_last_free_space_is_not_taken(many: ImageFolders, small_disk: Path) -> None:
    directory = small_disk / "cache"
    reason = build(directory, many.root, many.files(), reader(many), Budget(10**9, shard=300_000))
    assert reason == "the disk is nearly full"
    usage = shutil.disk_usage(small_disk)
    assert usage.free >= 0.04 * usage.total
    check(directory, many.root)


def test_a_run_beside_a_full_disk_sees_every_pixel(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPPE_CACHE", str(small_disk / "own"))
    photos = make_photos(small_disk / "photos", each=30, size=(100, 100))
    says: list[str] = []
    kept = opened(photos, says)
    assert 0 < held(kept) < 120
    assert "the others are decoded at every use" in says[-1]
    assert everything(kept) == everything(photos)


LIMITED = """
import resource, sys
from pathlib import Path
from photos import reader
from steppe.data.decoded_build import Budget, build
from steppe.data.folders import ImageFolders
directory, root = Path(sys.argv[1]), Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
photos = ImageFolders(root)
print(build(directory, root, photos.files(), reader(photos), Budget(10**9, spare=0)))
"""


def test_a_file_that_cannot_grow_any_more(many: ImageFolders, tmp_path: Path) -> None:
    child = run_python(LIMITED, tmp_path / "cache", many.root)
    out, err = child.communicate(timeout=60)
    assert out == "no space is left on the disk\n", err
    assert check(tmp_path / "cache", many.root) == 6
    assert not list((tmp_path / "cache").glob(".*"))


def test_something_in_the_way_moves_the_cache_elsewhere(photos: ImageFolders) -> None:
    beside, own = cache_places(photos.root)
    beside.write_text("a file")
    kept = opened(photos)
    assert kept.directory == own
    assert everything(kept) == everything(photos)
    assert opened(photos).directory == own


AS_NOBODY = """
import os, sys
from pathlib import Path
from steppe.data import CacheOptions, decoded_pictures
from steppe.data.decoded import DecodedPictures
from steppe.data.folders import ImageFolders
from photos import everything
photos = ImageFolders(Path(sys.argv[1]))
os.setgroups([]), os.setgid(65534), os.setuid(65534)
kept = decoded_pictures(photos, CacheOptions("on"), say=print)
print("kept in", kept.directory if isinstance(kept, DecodedPictures) else None)
assert everything(kept) == everything(photos)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become nobody")
@pytest.mark.parametrize("own_writable", [True, False])
def test_where_nothing_may_be_written(monkeypatch: pytest.MonkeyPatch, own_writable: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        photos = make_photos(folder / "photos")
        own = folder / "own"
        own.mkdir()
        own.chmod(0o777 if own_writable else 0o755)
        monkeypatch.setenv("STEPPE_CACHE", str(own))
        child = run_python(AS_NOBODY, photos.root)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        beside, ours = cache_places(photos.root)
        assert out.splitlines()[-1] == f"kept in {ours if own_writable else None}"
        if not own_writable:
            assert "cannot be written (Permission denied)" in out
        # What the superuser made, nobody may read.
        opened(photos)
        child = run_python(AS_NOBODY, photos.root)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        assert out.splitlines()[-1] == f"kept in {ours if own_writable else beside}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become nobody")
def test_a_cache_that_may_not_be_looked_into_is_made_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o777)
        photos = make_photos(folder / "photos")
        monkeypatch.setenv("STEPPE_CACHE", str(folder / "own"))
        beside, ours = cache_places(photos.root)
        opened(photos)
        beside.chmod(0o700)
        child = run_python(AS_NOBODY, photos.root)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        assert out.splitlines()[-1] == f"kept in {ours}"
