"""Options of `steppe bench` that say how runs are executed."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import SMALL, complaint, help_page

from steppe.cli import run


def test_a_failed_run_is_left_alone_until_it_is_asked_for(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    wild = ["--optimizer", "sgd", "--seeds", "1", "--out", str(out), *SMALL, "--lr", "1e30"]
    command = ["bench", str(drawings), "--algorithms", "erm", "--held-out", "line", *wild]
    assert run(command) == 1
    (failure,) = out.rglob("failure.json")
    stamp = failure.stat().st_mtime_ns
    capsys.readouterr()

    assert run(command) == 1
    text = capsys.readouterr().out
    assert "1 run, of which 1 failed before (--retry-failed tries again)\n" in text
    assert "1 run failed:" in text, "the table says so"
    assert failure.stat().st_mtime_ns == stamp

    assert run([*command, "--retry-failed"]) == 1
    text = capsys.readouterr().out
    assert "1 run, of which 1 failed before and tried again\n" in text
    assert failure.stat().st_mtime_ns != stamp


def test_options_of_another_executor_are_refused(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match="2"):
        run(["bench", str(drawings), "--jobs", "2", *out])
    assert "--jobs is for --executor local or --executor ray" in " ".join(capsys.readouterr().err.split())
    settings = tmp_path / "settings.toml"
    settings.write_text('executor = "local"\naddress = "auto"\n')
    assert "--address is for --executor ray" in complaint(capsys, "bench", drawings, "--config", settings, *out)
    assert not (tmp_path / "runs").exists()


def test_the_help_says_what_each_executor_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = " ".join(help_page(capsys, monkeypatch, "bench").replace("│", " ").split())
    for part in (
        "--executor {inprocess,local,ray}",
        "(default: inprocess)",
        "--retry-failed",
        "steppe bench ./my-data --executor ray --address auto",
        "(default: local: measured; ray: none is reserved)",
    ):
        assert part in page
