"""`steppe bench` with a search, selections, several data sets, and ``--only``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, complaint, write_drawings
from made_up_runs import write_benchmark

from steppe.benchmark.plan import read_plans
from steppe.cli import run
from steppe.cli.commands import Bench
from steppe.cli.only import limited, parse_only
from steppe.cli.parse import parse
from steppe.errors import SteppeError
from steppe.training.session import Session

TINY = [*SMALL, "--steps", "2", "--eval-every", "1"]


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real drawings in a folder: three domains, two classes, eight of each."""
    return write_drawings(tmp_path_factory.mktemp("sets") / "three", ("fluent", "noto", "line"))


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of output is broken."""
    monkeypatch.setenv("COLUMNS", "400")


def bench(*arguments: str | Path, status: int = 0) -> None:
    assert run(["bench", *map(str, arguments), *TINY]) == status


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(out.rglob("result.json"))]


def test_random_draws_are_trained_once_and_the_chosen_ones_shown(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "runs"
    arguments = [three, "--algorithms", "erm", "disam", "--held-out", "line", "--seeds", "2", "--out", out]
    bench(*arguments, "--draws", "3")
    text = capsys.readouterr().out
    assert "12 runs\n" in text
    assert "disam, line held out, seed 1, draw 2: " in text
    assert "best of 3 random draws by training-domain validation set\n" in text
    assert "Chosen hyper-parameters   three\n" in text
    assert len(results(out)) == 12
    (plan,), _ = read_plans(out)
    assert len(plan.cells) == 4
    rows = [line.split() for line in text.partition("Chosen hyper-parameters")[2].splitlines() if " line " in line]
    assert [row[:3] for row in rows] == [[name, "line", seed] for name in ("disam", "erm") for seed in "01"]
    for row in rows:
        cell = next(cell for cell in plan.cells if [cell.algorithm, str(cell.seed)] == [row[0], row[2]])
        scores = {}
        for number, draw in plan.cells[cell].items():
            content = json.loads((out / draw.run / "result.json").read_text())
            scores[(content["validation_accuracy"], number)] = content
        best, number = max(scores)
        assert row[3:6] == [
            str(number),
            str(scores[best, number]["selected_step"]),
            f"{100 * scores[best, number]['held_out_accuracy']:.1f}",
        ]

    table = text.partition("Accuracy in %")[2]
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    bench(*arguments, "--draws", "3")
    again = capsys.readouterr().out
    assert "12 runs, of which 12 finished already" in again
    assert again.partition("Accuracy in %")[2] == table
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == stamps

    assert run(["report", str(out)]) == 0
    reported = capsys.readouterr().out
    assert reported.partition("Accuracy in %")[2] == table
    assert run(["report", str(out), "--selection", "oracle"]) == 0
    assert "best of 3 random draws by test-domain validation set (oracle)\n" in capsys.readouterr().out


def test_a_plain_comparison_stands_beside_a_searched_one(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    arguments = [three, "--algorithms", "erm", "--held-out", "line", "--seeds", "1", "--out", out]
    bench(*arguments, "--draws", "2")
    capsys.readouterr()
    bench(*arguments, "--momentum", "0.5", "--optimizer", "sgd")
    assert "best of" not in capsys.readouterr().out, "the table of a command is about its own runs"
    assert run(["report", str(out)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "erm (search=2 random draws)" in text


def test_a_tpe_search_and_three_selections(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    options = ["--algorithms", "erm", "--held-out", "line", "--seeds", "1", "--out", out, "--search", "tpe"]
    rules = ["--selection", "training", "leave-one-out", "oracle"]
    bench(three, *options, "--trials", "3", *rules)
    text = capsys.readouterr().out
    assert "a search of 3 trials for each of 1; first 3 runs" in text
    assert "best of 3 trials of TPE by training-domain validation set" in text
    assert "By the rule of selection, average over the held-out domains   three" in text
    assert len(results(out)) == 9, "each trial, and with each of the other two domains held out too"
    assert list(out.glob("sweeps/*/studies/three/*/erm/line/0.journal"))
    bench(three, *options, "--trials", "3", *rules)
    again = capsys.readouterr().out
    assert "first 9 runs, of which 9 finished already" in again
    assert again.partition("Accuracy in %")[2] == text.partition("Accuracy in %")[2]


def test_selection_without_a_search_chooses_the_checkpoint(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    bench(three, "--algorithms", "erm", "--held-out", "line", "--seeds", "1", "--out", out, "--selection", "oracle")
    text = capsys.readouterr().out
    assert "checkpoint by test-domain validation set (oracle)" in text
    (content,) = results(out)
    last = content["checkpoints"][-1]
    (row,) = (line for line in text.partition("Accuracy in %")[2].splitlines() if line.startswith("erm"))
    assert row.split()[1] == f"{100 * last['held_out_accuracy']:.1f}"
    assert "Chosen hyper-parameters" not in text


def test_several_data_sets(three: Path, drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    arguments = [three, drawings, "--algorithms", "erm", "--held-out", "line", "--seeds", "1", "--out", out]
    bench(*arguments)
    text = capsys.readouterr().out
    assert "three: 48 pictures" in text
    assert "drawings: 32 pictures" in text
    assert "never seen in training   drawings" in text
    assert "never seen in training   three" in text
    bench(*arguments, "--only", "dataset=drawings")
    text = capsys.readouterr().out
    assert "three" not in text
    assert "1 run, of which 1 finished already" in text
    bench(*arguments, "--only", f"dataset={three}")
    assert "drawings: " not in capsys.readouterr().out
    assert complaint(capsys, "bench", "--algorithms", "erm").startswith("error: no data set was given")


def test_only_a_part(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    sweep = [three, "--algorithms", "sam", "disam+coral", "--seeds", "2", "--out", out, "--draws", "2"]
    both = ["--selection", "training", "leave-one-out"]
    bench(*sweep, *both, "--only", "algorithm=coral+disam", "held_out=line", "seed=1", "selection=training")
    assert "2 runs\n" in capsys.readouterr().out
    assert {(r["algorithm"], r["held_out"], r["seed"]) for r in results(out)} == {("coral+disam", "line", 1)}
    bench(
        *sweep, *both, "--only", "algorithm=sam", "held-out=line", "held-out=noto", "seed=0", "selection=leave-one-out"
    )
    text = capsys.readouterr().out
    assert "10 runs\n" in text, "two domains, three pairs, two draws"
    assert "best of 2 random draws by leave-one-domain-out cross-validation" in text
    plans, _ = read_plans(out)
    assert len(plans) == 1, "parts of one sweep"
    assert len(plans[0].cells) == 3


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("line", "--only takes NAME=VALUE, such as held-out=line, got 'line'"),
        ("held-out=", "--only takes NAME=VALUE"),
        ("domain=line", "unknown part of a sweep in --only 'domain'"),
        (
            "held-out=lime",
            "--only held-out=lime: this sweep has no such part; unknown held-out domain 'lime'; did you mean 'line'",
        ),
        ("algorithm=sam", "--only algorithm=sam: this sweep has no such part; unknown algorithm 'sam'"),
        ("seed=1", "--only seed=1: this sweep has no such part; unknown seed '1'; known: 0"),
        ("selection=oracle", "--only selection=oracle: this sweep has no such part"),
        ("dataset=emoji", "--only dataset=emoji: this sweep has no such part"),
    ],
)
def test_parts_that_a_sweep_does_not_have(
    only: str, message: str, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", three, "--algorithms", "erm", "--seeds", "1", "--out", tmp_path / "runs", *TINY]
    assert message in complaint(capsys, *arguments, "--only", only)
    assert not (tmp_path / "runs").exists()


def test_parts_in_their_order() -> None:
    only = parse_only(["held-out=b", "held_out=a", "seed=0"])
    assert only == {"held-out": ["b", "a"], "seed": ["0"]}
    assert limited(only, "held-out", ["a", "b", "c"]) == ["a", "b"]
    assert limited(only, "algorithm", ["x"]) == ["x"]
    assert limited(only, "held-out", ["b", "c"], known=["a", "b", "c"]) == ["b"], "another data set has it"
    with pytest.raises(SteppeError, match="this sweep has no such part"):
        limited(only, "held-out", ["b", "c"])


def test_a_file_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        'dataset = ["emoji", "rotated-mnist"]\nselection = ["oracle", "training"]\nsearch = "tpe"\ntrials = 7\n'
        'fixed = ["dropout"]\nprune = false\nonly = ["held-out=line", "seed=0"]\nretry_failed = true\n'
    )
    options = (
        "emoji rotated-mnist --selection oracle training --search tpe --trials 7 --fixed dropout --no-prune "
        "--only held-out=line seed=0 --retry-failed"
    )
    by_file, by_options = parse(["bench", "--config", str(path)]), parse(["bench", *options.split()])
    assert isinstance(by_file, Bench)
    assert isinstance(by_options, Bench)
    for field in ("dataset", "selection", "search", "only", "execution"):
        assert getattr(by_file, field) == getattr(by_options, field), field
    assert by_options.dataset == ("emoji", "rotated-mnist")
    for line, message in (
        ('selection = ["orakle"]', "selection: must be one of training, leave-one-out, oracle, got 'orakle'"),
        ("draws = 0", "draws must be at least 1"),
        ("trials = 3", "add --search tpe"),
    ):
        path.write_text(line)
        with pytest.raises(SteppeError, match=re.escape(message)):
            parse(["bench", "emoji", "--config", str(path)])


def test_what_failed_is_tried_again_only_when_asked(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    arguments = [three, "--algorithms", "erm", "sam", "--held-out", "line", "--seeds", "1", "--out", out]
    make_step = Session.make_step

    def broken(self: Session, batch: Any) -> None:
        if self.method.name == "sam":
            raise MemoryError("out of memory")
        make_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "make_step", broken)
        bench(*arguments, status=1)
    assert "sam, line held out, seed 0: failed; " in capsys.readouterr().out
    (failure,) = out.rglob("failure.json")
    assert "in broken" in json.loads(failure.read_text())["traceback"]
    stamp = failure.stat().st_mtime_ns

    bench(*arguments, status=1)
    text = capsys.readouterr().out
    assert "2 runs, of which 1 finished already, 1 failed before (--retry-failed tries again)\n" in text
    assert "1 run failed:\n" in text, "the table says so"
    assert "out of memory" in text
    assert failure.stat().st_mtime_ns == stamp

    bench(*arguments, "--retry-failed")
    assert "1 failed before and tried again\n" in capsys.readouterr().out
    assert not failure.exists()
    assert len(results(out)) == 2


def test_a_store_of_an_older_version_is_read_and_added_to(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    arguments = [three, "--algorithms", "erm", "--held-out", "line", "--seeds", "1", "--out", out]
    bench(*arguments)
    table = capsys.readouterr().out.partition("Accuracy in %")[2]
    (path,) = out.rglob("result.json")
    content = json.loads(path.read_text())
    del content["checkpoints"]
    path.write_text(json.dumps({**content, "version": 1}))
    bench(*arguments)
    text = capsys.readouterr().out
    assert "1 run, of which 1 finished already" in text
    assert text.partition("Accuracy in %")[2] == table
    bench(*arguments, "--selection", "oracle", status=1)
    text = " ".join(capsys.readouterr().out.split())
    assert f"{path} is of version 1, which has no table of checkpoints" in text
    assert "delete it to train the run again" in text


def test_a_result_of_a_later_steppe_is_left_alone(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    arguments = [three, "--algorithms", "erm", "sam", "--held-out", "line", "--seeds", "1", "--out", out]
    bench(*arguments)
    path = next(path for path in out.rglob("result.json") if "/erm/" in str(path))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9}))
    before = path.read_text()
    capsys.readouterr()
    bench(*arguments, status=1)
    text = capsys.readouterr().out
    assert "1 finished already, 1 with a result of a later steppe" in text
    assert "version 9; this steppe reads versions 1 and 2" in text
    assert path.read_text() == before


def test_a_damaged_plan_is_named_and_the_report_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_benchmark(tmp_path, seeds=1)
    plan = tmp_path / "sweeps" / "0123456789ab" / "sweep.json"
    plan.parent.mkdir(parents=True)
    plan.write_text("{bad")
    assert run(["report", str(tmp_path)]) == 0
    text = "".join(capsys.readouterr().out.split())
    assert str(plan) in text
    shutil.rmtree(plan.parent)
