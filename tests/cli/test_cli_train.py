"""`steppe train`, in this process and in real ones."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ENVIRONMENT, PROGRAM, SMALL, steppe

from steppe.cli import run
from steppe.training.session import Session


def test_a_failed_train_is_recorded_and_forgotten_when_tried_again(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    arguments = ["train", str(drawings), "--held-out", "line", "--out", str(out), *SMALL]
    make_step = Session.make_step

    def broken(self: Session, batch: Any) -> None:
        make_step(self, batch)
        with torch.no_grad():
            self.model.head.bias[0] = torch.nan

    with monkeypatch.context() as patch:
        patch.setattr(Session, "make_step", broken)
        assert run(arguments) == 1
    assert re.match("error: .*not finite", capsys.readouterr().err)
    (failure,) = out.rglob("failure.json")
    assert json.loads(failure.read_text())["type"] == "NonFiniteLossError"
    assert run(["report", str(out)]) == 2
    message = capsys.readouterr().err
    assert "1 run failed" in message
    assert "not finished" not in message
    assert run(arguments) == 0
    assert not failure.exists()


def test_train_says_what_came_out(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    assert run(["train", str(drawings), "--held-out", "line", "--out", str(out), *SMALL]) == 0
    text = capsys.readouterr().out
    (path,) = out.rglob("result.json")
    content = json.loads(path.read_text())
    assert f"held out, line: {100 * content['held_out_accuracy']:.1f} %" in text
    assert f"in domain: {100 * content['in_domain_accuracy']:.1f} %" in text
    assert str(path.parent) in text


def test_a_second_domain_may_be_held_out(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--validation-domain", "noto", "--out", str(tmp_path / "runs"), *SMALL]
    assert run(["train", "emoji", "--held-out", "line", *options]) == 0
    text = capsys.readouterr().out
    (path,) = (tmp_path / "runs").rglob("result.json")
    content = json.loads(path.read_text())
    assert content["validation_domain"] == "noto"
    chosen = next(row for row in content["checkpoints"] if row["step"] == content["selected_step"])
    assert f"held out too, noto: {100 * chosen['cross_validation_accuracy']['noto']:.1f} %" in text
    assert run(["train", str(drawings), "--held-out", "line", *options]) == 2
    assert run(["train", "emoji", "--held-out", "noto", *options]) == 2
    assert "choose another one" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_command_continues_after_ctrl_c(drawings: Path, tmp_path: Path) -> None:
    arguments = ["train", drawings, "--held-out", "line", "--algorithm", "fishr+disam+tram", *SMALL, "--steps", "40"]
    arguments += ["--hyper", "anneal_steps=20", "--eval-every", "20", "--checkpoint-every", "2"]
    assert run([*map(str, arguments), "--out", str(tmp_path / "whole")]) == 0
    parts = tmp_path / "parts"
    command = [*PROGRAM, *map(str, arguments), "--out", str(parts)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while not list(parts.rglob("state.pt")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate()
    assert child.returncode == 130
    assert errors.startswith("stopped; the same command continues where this one left off:\n  steppe train")
    assert not list(parts.rglob("result.json"))
    assert run([*map(str, arguments), "--out", str(parts)]) == 0
    assert lines(parts) == lines(tmp_path / "whole")


def lines(root: Path) -> list[dict[str, Any]]:
    """Of all logs below, times aside."""
    found = [json.loads(line) for path in root.rglob("metrics.jsonl") for line in path.read_text().splitlines()]
    assert found
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


@pytest.mark.slow
def test_a_sum_on_the_embedded_data_in_a_real_process(tmp_path: Path) -> None:
    options = ["--steps", "2", "--eval-every", "2", "--hyper", "coral.weight=0.5", "sagm.alpha=0.01", "rho=0.1"]
    done = steppe(
        *("train", "emoji", "--held-out", "line", "--algorithm", "sagm+disam+coral", "--out", tmp_path),
        *(*SMALL, *options),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("coral+disam+sagm, line held out, seed 0: from the start")
    (path,) = tmp_path.rglob("config.json")
    assert path.relative_to(tmp_path).parts[:3] == ("emoji", "coral+disam+sagm", "line")
    assert json.loads(path.read_text())["hyper"] == {
        "coral.weight": 0.5,
        "disam.ascent_fraction": 1.0,
        "disam.lam": 0.1,
        "disam.m": 1,
        "disam.rho": 0.1,
        "sagm.alpha": 0.01,
        "sagm.shared": False,
    }
    first, *_ = lines(tmp_path)
    assert first["penalty"]["coral"] > 0


def test_a_run_too_short_for_its_penalty_is_told(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(drawings), "--held-out", "line", "--algorithm", "irm", "--out", str(tmp_path), *SMALL]
    assert run(arguments) == 0
    assert (
        "note: irm.anneal_steps is 500 (steps in which the weight is 1 instead), and the run has 6 steps"
        in capsys.readouterr().out
    )
    assert run([*arguments, "--hyper", "anneal_steps=2"]) == 0
    assert "note:" not in capsys.readouterr().out
