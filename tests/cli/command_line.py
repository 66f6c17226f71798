"""Shared by the tests of the command line: small options, a command in a real process, its help, its complaints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steppe.cli import run
from steppe.data import open_dataset

SMALL = [
    *("--backbone", "test_resnet", "--no-pretrained", "--image-size", "32", "--batch-per-domain", "3"),
    *("--steps", "6", "--eval-every", "3", "--lr", "1e-3"),
]
PROGRAM = [sys.executable, "-c", "from steppe.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def steppe(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command in a real process."""
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def help_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """The help of a command in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        run([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command says of input that is wrong: one clear message, no traceback, status 2."""
    assert run([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ")
    return captured.err


def write_drawings(root: Path, domains: tuple[str, ...]) -> Path:
    """Real drawings in a folder: these domains, two classes, eight of each."""
    emoji = open_dataset("emoji")
    for domain in domains:
        for name in ("face", "vehicle"):
            (root / domain / name).mkdir(parents=True)
            label = emoji.classes.index(name)
            for index in [i for i, own in enumerate(emoji.labels(domain)) if own == label][:8]:
                emoji.image(domain, index).save(root / domain / name / f"{index}.png")
    return root
