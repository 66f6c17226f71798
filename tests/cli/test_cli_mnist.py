"""The command line on the data sets made of MNIST, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import complaint
from small_mnist import pinned, write_mnist

from steppe.cli import run

FITTING = ["--backbone", "mnist_cnn", "--image-size", "28"]
SMALL = [*FITTING, "--batch-per-domain", "3", "--steps", "2", "--eval-every", "2", "--lr", "1e-3"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPPE_CACHE", str(tmp_path / "cache"))
    pinned(monkeypatch)
    return tmp_path / "cache"


def test_fetch_list_check_and_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "run `steppe data fetch mnist`" in complaint(capsys, "train", "rotated-mnist", "--held-out", "0", *SMALL)
    assert run(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "rotated-mnist 0 15 30 45 60 75" in " ".join(listed.split())
    assert "fetch mnist" in listed
    packages = write_mnist(tmp_path / "downloads")
    assert run(["data", "fetch", "mnist", "--packages", str(packages)]) == 0
    told = capsys.readouterr().out
    assert f"made {tmp_path / 'cache' / 'mnist'}\n" in told
    assert "use it: steppe bench rotated-mnist --backbone mnist_cnn --image-size 28" in told
    assert run(["data", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["colored-mnist", "+90%", "+80%", "-90%", "2", "300", "here"] in rows
    assert run(["data", "check", "colored-mnist-90@2"]) == 0
    assert ["all", "30", "30", "30"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert run(["data", "sheet", "colored-mnist", "--per-class", "4", "--out", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").is_file()


def test_check_names_every_file_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_mnist(tmp_path / "own", compressed=True)
    assert run(["data", "check", str(folder / "rotated-mnist")]) == 0
    capsys.readouterr()
    for name in ("train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        (folder / name).write_bytes(b"")
    assert run(["data", "check", str(folder / "rotated-mnist")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(str(folder) in line and "steppe data fetch mnist" in line for line in lines)


def test_a_run_on_files_in_a_folder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_mnist(tmp_path / "own"), tmp_path / "runs"
    arguments = ["train", f"{folder}/colored-mnist-240@1", "--held-out", "-90%", "--out", str(out), *SMALL]
    assert run(arguments) == 0
    assert "held out, -90%:" in capsys.readouterr().out
    (path,) = out.rglob("result.json")
    assert path.relative_to(out).parts[:3] == ("colored-mnist-240@1", "erm", "-90%")
    content = json.loads(path.read_text())
    assert content["dataset_spec"] == f"{folder}/colored-mnist-240@1"
    assert content["counts"]["-90%"] == {"in": 64, "out": 16, "all": 80}


def test_the_default_network_is_no_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_mnist(tmp_path / "own"), tmp_path / "runs"
    for command in (["bench"], ["train", "--held-out", "0"]):
        told = complaint(capsys, *command, f"{folder}/rotated-mnist", "--out", out)
        assert "(--backbone mnist_cnn --image-size 28)" in told
    assert not out.exists()
    assert "unknown data set to fetch 'rotated-mnist'; did you mean 'mnist'" in complaint(
        capsys, "data", "fetch", "rotated-mnist"
    )
