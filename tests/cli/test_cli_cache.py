"""The options of the cache of decoded pictures, on the command line and in a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import SMALL

from steppe.cli import run


@pytest.fixture
def folder(drawings: Path, tmp_path: Path) -> Path:
    """The drawings, with nothing beside them yet."""
    return Path(shutil.copytree(drawings, tmp_path / "sets" / "drawings"))


def train(folder: Path, out: Path, *options: str | Path) -> Path:
    """Trains on the folder; where its result is."""
    arguments = ["train", folder, "--held-out", "line", "--out", out, *SMALL, *options]
    assert run([str(argument) for argument in arguments]) == 0
    (result,) = out.rglob("result.json")
    return result


def test_the_cache_is_made_once_and_is_no_part_of_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = folder.parent / ".drawings.steppe-cache"
    first = train(folder, tmp_path / "on", "--cache", "on")
    assert f"decoding pictures once, into {cache}" in capsys.readouterr().out.replace("\n", "")
    made = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert any(path.suffix == ".pixels" for path in made)
    again = train(folder, tmp_path / "again", "--cache", "on", "--workers", "2")
    assert "decoding" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == made
    off = train(folder, tmp_path / "off", "--cache", "off", "--augment", "host")
    assert first.parent.name == again.parent.name == off.parent.name
    weights = {(result.parent / "model.safetensors").read_bytes() for result in (first, again, off)}
    assert len(weights) == 1
    assert json.loads(off.read_text())["augmentation"] == "host, 8 bits (Pillow)"


def test_the_options_may_stand_in_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('cache = "on"\ncache_gb = 0.00001\naugment = "device"\n')
    result = train(folder, tmp_path / "runs", "--config", tmp_path / "run.toml")
    assert json.loads(result.read_text())["augmentation"] == "device, float32"
    assert not list((folder.parent / ".drawings.steppe-cache").glob("*.pixels"))  # 10 kB are less than one picture


@pytest.mark.parametrize(
    ("options", "message"), [(("--cache-gb", "-1"), "cache_gb must be at least 0"), (("--cache", "maybe"), "maybe")]
)
def test_what_cannot_be_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["train", str(folder), "--held-out", "line", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
