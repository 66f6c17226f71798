"""The command line as a user meets it: help, wrong input, whole commands in real processes."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_runs import write_benchmark
from PIL import Image
from rich.console import Console

from steppe.benchmark.presets import DEMO
from steppe.cli import run, sweep
from steppe.cli.commands import COMMANDS, Bench, Train
from steppe.cli.config_file import defaults_from
from steppe.cli.parse import parse
from steppe.data import open_dataset
from steppe.errors import SteppeError
from steppe.training.progress import Display
from steppe.training.session import Session

SMALL = [
    *("--backbone", "test_resnet", "--no-pretrained", "--image-size", "32", "--batch-per-domain", "3"),
    *("--steps", "6", "--eval-every", "3", "--lr", "1e-3"),
]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real drawings in a folder: two domains, two classes, eight of each."""
    root = tmp_path_factory.mktemp("sets") / "drawings"
    emoji = open_dataset("emoji")
    for domain in ("noto", "line"):
        for name in ("face", "vehicle"):
            (root / domain / name).mkdir(parents=True)
            label = emoji.classes.index(name)
            for index in [i for i, own in enumerate(emoji.labels(domain)) if own == label][:8]:
                emoji.image(domain, index).save(root / domain / name / f"{index}.png")
    return root


def steppe(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-c", "from steppe.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)  # type: ignore[call-overload,no-any-return]


# --- help ---


def help_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        run([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_in_80_columns(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = help_page(capsys, monkeypatch, *words)
    assert max(map(len, page.splitlines())) <= 80
    if words != ("data", "list"):
        assert f"\n  steppe {' '.join(words)}" in page, "an example"


def test_the_overviews_list_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    overview = help_page(capsys, monkeypatch)
    data = help_page(capsys, monkeypatch, "data")
    for words in COMMANDS:
        assert f"• {words[-1]} " in (data if words[0] == "data" else overview)
    assert max(map(len, (overview + data).splitlines())) <= 80


def test_help_shows_defaults_and_what_the_words_mean(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = " ".join(help_page(capsys, monkeypatch, "bench").replace("│", " ").split())
    for part in (
        "(default: erm sam disam)",
        "(default: 5e-05)",
        "(default: 0.05; asam: 0.5)",
        "(default: all)",
        "climbs so that the domains converge at one pace (Zhang et al. 2024)",
    ):
        assert part in page
    assert "None" not in page


def test_help_does_not_load_the_heavy_libraries() -> None:
    script = (
        "import sys\n"
        "from steppe.cli import run\n"
        "try: run(['bench', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'timm', 'torchvision', 'accelerate', 'plotly', 'polars', 'scipy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = "import sys; from steppe.cli import main; main(['train', '--help'])"
    child = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.wait() == 128 + signal.SIGPIPE
    assert child.stderr.read() == b""


def test_version() -> None:
    done = steppe("--version")
    assert (done.returncode, done.stdout) == (0, "steppe 0.1.0\n")


# --- wrong input: one clear message, no traceback, status 2 ---


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ")
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bnch emoji", "unknown command 'bnch'; did you mean 'bench'"),
        ("data fech", "unknown command 'data fech'; did you mean 'data fetch'"),
        ("data fetch emojis", "unknown data set to fetch 'emojis'; did you mean 'emoji'"),
        ("bench emojy", "unknown data set 'emojy'; did you mean 'emoji'"),
        ("bench emoji --algorithms erm dism", "unknown algorithm 'dism'; did you mean 'disam'"),
        ("bench emoji --algorithms gsam+sagm", "'gsam' and 'sagm' both fill the slot 'descent'"),
        ("bench emoji --held-out lime", "unknown domain 'lime' of 'emoji'; did you mean 'line'"),
        ("bench emoji --algorithms erm --rho 0.1", "rho was given, but none of the algorithms (erm) takes it"),
        ("train emoji --held-out lime", "unknown domain 'lime' of 'emoji'; did you mean 'line'"),
        ("train emoji --held-out line --algorithm sam --lam 1", "'sam' has no hyper-parameter 'lam'"),
        ("bench emoji --config no-such-file.toml", "cannot read the config file no-such-file.toml"),
        ("bench emoji --backbone resnet18x", "unknown backbone 'resnet18x'; did you mean"),
        ("train emoji --held-out line --backbone resnet18x", "unknown backbone 'resnet18x'; did you mean"),
        ("data sheet emoji --classes fase", "unknown class 'fase' of 'emoji'; did you mean 'face'"),
        ("report no-such-folder", "no folder of runs at no-such-folder"),
    ],
)
def test_wrong_names(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in complaint(capsys, *arguments.split())
    assert not list(tmp_path.iterdir()), "nothing is written before the input is known to be right"


def torch_is_loaded_by(*arguments: str | Path, status: int) -> bool:
    script = "import sys; from steppe.cli import run; print(run(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    number, loaded = done.stdout.split()[-2:]
    assert number == str(status), done.stderr
    return loaded == "True"


@pytest.mark.parametrize(
    "arguments",
    ["bench emoji --algorithms srm", "train emoji --held-out line --algorithm srm", "bench emojy", "report nothere"],
)
def test_a_wrong_name_does_not_wait_for_torch(arguments: str) -> None:
    assert not torch_is_loaded_by(*arguments.split(), status=2)


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    write_benchmark(tmp_path, seeds=1, pictures_of_emoji=True)
    assert not torch_is_loaded_by("report", tmp_path, status=0)
    assert "data:image/webp" in (tmp_path / "report.html").read_text()


def test_wrong_folders(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(drawings, tmp_path / "set")
    broken = next((root / "noto" / "face").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    assert str(broken) in complaint(capsys, "bench", root, "--out", tmp_path / "runs", *SMALL)
    broken.write_text("not a picture")
    assert str(broken) in complaint(capsys, "train", root, "--held-out", "line", "--out", tmp_path / "runs", *SMALL)

    shutil.rmtree(root / "noto" / "face")
    message = complaint(capsys, "bench", root, "--out", tmp_path / "runs", *SMALL)
    assert "'face'" in message
    assert "'noto'" in message
    shutil.rmtree(root / "noto")
    message = complaint(capsys, "bench", root, "--out", tmp_path / "runs", *SMALL)
    assert "has one domain, 'line'" in message
    (root / "empty").mkdir()
    assert "domain 'empty'" in complaint(capsys, "bench", root, "--out", tmp_path / "runs", *SMALL)
    assert not (tmp_path / "runs").exists(), "nothing is written before the input is known to be right"


def test_an_output_that_is_a_file(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("")
    message = complaint(capsys, "bench", drawings, "--out", tmp_path / "runs", *SMALL)
    assert f"cannot write {tmp_path / 'runs'}" in message


def test_options_that_do_not_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["bench", "emoji", "--algoritms", "erm"])
    assert caught.value.code == 2
    assert "--algorithms" in capsys.readouterr().err


# --- a file is another view of the options ---


def test_a_file_and_options_give_the_same_command(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        'dataset = "emoji"\nalgorithms = ["erm", "disam+sagm"]\nheld-out = ["line"]\nseeds = 2\nout = "here"\n'
        'batch_per_domain = 8\nlr = 1\nlam = 0.2\npretrained = false\nschedule = "cosine"\nthreads = 2\n'
    )
    options = (
        "emoji --algorithms erm disam+sagm --held-out line --seeds 2 --out here --batch-per-domain 8 --lr 1 --lam 0.2 "
        "--no-pretrained --schedule cosine --threads 2"
    )
    by_file = parse(["bench", "--config", str(path)])
    by_options = parse(["bench", *options.split()])
    assert isinstance(by_file, Bench)
    assert isinstance(by_options, Bench)
    for field in ("dataset", "algorithms", "held_out", "seeds", "out", "settings", "machine"):
        assert getattr(by_file, field) == getattr(by_options, field), field


def test_options_go_before_the_file_and_the_file_before_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('held_out = "line"\nlr = 0.5\nsteps = 10\n')
    command = parse(["train", "emoji", f"--config={path}", "--steps", "20"])
    assert isinstance(command, Train)
    assert (command.held_out, command.settings.lr, command.settings.steps) == ("line", 0.5, 20)
    assert command.settings.batch_per_domain == 32


def test_what_a_file_leaves_out_stays_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("lr = 0.5\n")
    with pytest.raises(SystemExit) as caught:
        parse(["train", "emoji", "--config", str(path)])
    assert caught.value.code == 2
    assert "--held-out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("step = 3", "unknown option 'step'; did you mean 'steps'"),
        ('steps = "many"', "steps: expected a whole number, got 'many'"),
        ("steps = 1.5", "steps: expected a whole number, got 1.5"),
        ("pretrained = 1", "pretrained: expected true or false, got 1"),
        ("lr = true", "lr: expected a number, got True"),
        ('optimizer = "adamv"', "optimizer: must be one of adam, adamw, sgd, got 'adamv'"),
        ("algorithms = [1]", "algorithms: expected text, got 1"),
        ("steps = ", "is not TOML"),
        ("steps = 0", "steps must be at least 1"),
    ],
)
def test_wrong_files(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(line + "\n")
    with pytest.raises(SteppeError, match=message.replace("[", r"\[")):
        defaults_from(path, Bench)


# --- whole commands ---


def test_bench_trains_once_prints_a_table_and_writes_a_page(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "runs"
    arguments = ["bench", str(drawings), "--algorithms", "erm", "disam", "--seeds", "2", "--out", str(out), *SMALL]
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert "8 runs\n" in text
    assert "disam" in text
    assert (out / "report.html").exists()
    assert str(out / "report.html") in text
    results = sorted(out.rglob("result.json"))
    assert len(results) == 8
    content = json.loads(results[0].read_text())
    assert content["command"].startswith(f"steppe bench {drawings} --algorithms erm disam")
    stamps = [path.stat().st_mtime_ns for path in results]

    assert run([*arguments[:6], "3", *arguments[7:]]) == 0
    assert "12 runs, of which 8 finished already" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in results] == stamps

    assert run(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert str(tmp_path / "page.html") in capsys.readouterr().out
    assert (tmp_path / "page.html").exists()


def test_bench_says_which_runs_failed(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    wild = ["--optimizer", "sgd", "--seeds", "1", "--out", str(out), *SMALL, "--lr", "1e30"]
    assert run(["bench", str(drawings), "--algorithms", "erm", "--held-out", "line", *wild]) == 1
    text = capsys.readouterr().out
    (failure,) = out.rglob("failure.json")
    assert "not finite" in text
    assert str(failure) in text


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


@pytest.mark.parametrize("damage", ["{bad", "{}", "[]"])
def test_a_damaged_result_is_named_and_the_other_runs_are_made(
    damage: str, drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    options = ["--held-out", "line", "--out", str(out), *SMALL, "--steps", "1", "--eval-every", "1"]
    assert run(["train", str(drawings), *options]) == 0
    (path,) = out.rglob("result.json")
    path.write_text(damage)
    capsys.readouterr()
    assert run(["bench", str(drawings), "--algorithms", "erm", "sam", "--seeds", "1", *options]) == 1
    text = capsys.readouterr().out
    assert "2 runs, of which 1 with a damaged result" in text
    assert str(path) in text
    assert "delete it to train the run again" in text
    assert len(list(out.rglob("result.json"))) == 2
    assert path.read_text() == damage
    assert f"{path}" in complaint(capsys, "train", drawings, *options)
    path.unlink()
    assert run(["bench", str(drawings), "--algorithms", "erm", "sam", "--seeds", "1", *options]) == 0
    assert "2 runs, of which 1 finished already, 1 to be continued" in capsys.readouterr().out


def test_names_and_paths_appear_as_they_are(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    root = shutil.copytree(drawings, tmp_path / "pics [old] :cat:")
    (root / "noto").rename(root / "cam[a]")
    (root / "line").rename(root / "cam[red]")
    for domain in root.iterdir():
        (domain / "face").rename(domain / "[x]")
    out = tmp_path / "rs[" / "x] [bold]"
    options = ["--held-out", "cam[a]", "--out", str(out), *SMALL, "--steps", "1", "--eval-every", "1"]
    assert run(["train", str(root), *options]) == 0
    text = capsys.readouterr().out
    assert "cam[a] held out" in text
    assert "held out, cam[a]:" in text
    assert f"  {out}/pics [old] :cat:/erm/cam[a]/" in text
    assert run(["bench", str(root), "--algorithms", "erm", "--seeds", "1", *options]) == 0
    text = capsys.readouterr().out
    assert "pics [old] :cat:: 32 pictures" in text
    assert "(cam[a], cam[red])" in text
    assert "1 run, of which 1 finished already" in text
    assert f"page: {out}/report.html" in text
    page = tmp_path / "rp [new].html"
    assert run(["report", str(out), "--out", str(page)]) == 0
    assert f"page: {page}" in capsys.readouterr().out
    assert run(["data", "check", str(root)]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("cam[a]", "cam[red]", "[x]"))
    assert run(["data", "sheet", str(root), "--out", str(tmp_path / "sheet [a].png")]) == 0
    assert "sheet [a].png" in capsys.readouterr().out


def test_bars_show_names_as_they_are() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, markup=True)
    with Display(console, runs=1) as display:
        display.begin("erm, cam[a] held out, [/x]", step=0, total=2)
    assert isinstance(console.file, io.StringIO)
    assert "erm, cam[a] held out, [/x]" in console.file.getvalue()


def test_train_says_what_came_out(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    assert run(["train", str(drawings), "--held-out", "line", "--out", str(out), *SMALL]) == 0
    text = capsys.readouterr().out
    (path,) = out.rglob("result.json")
    content = json.loads(path.read_text())
    assert f"held out, line: {100 * content['held_out_accuracy']:.1f} %" in text
    assert f"in domain: {100 * content['in_domain_accuracy']:.1f} %" in text
    assert str(path.parent) in text


def test_the_demo_with_a_tiny_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(DEMO.settings, backbone="test_resnet", pretrained=False, image_size=32, batch_per_domain=2)
    monkeypatch.setattr(sweep, "DEMO", replace(DEMO, settings=settings))
    assert run(["demo", "--steps", "1", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {(r["algorithm"], r["held_out"]) for r in found} == set(itertools.product(DEMO.algorithms, DEMO.held_out))
    assert {r["steps"] for r in found} == {1}
    assert str(tmp_path / "report.html") in text
    assert "±" not in text, "one seed has no spread"
    assert run(["demo", "--steps", "1", "--out", str(tmp_path), "--seeds", "2"]) == 0
    assert "±" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_continues_after_a_signal(signum: int, drawings: Path, tmp_path: Path) -> None:
    arguments = ["train", drawings, "--held-out", "line", "--algorithm", "disam", *SMALL, "--steps", "60"]
    arguments += ["--eval-every", "20", "--checkpoint-every", "2"]
    assert run([*map(str, arguments), "--out", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-c", "from steppe.cli import main; main()", *arguments, "--out", tmp_path / "parts"]
    child = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not list((tmp_path / "parts").rglob("state.pt")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signum)
    _, errors = child.communicate()
    if signum == signal.SIGINT:
        assert child.returncode == 130
        assert errors.startswith("stopped; the same command continues where this one left off:\n  steppe train")
    else:
        assert child.returncode == -signal.SIGKILL
    assert not list((tmp_path / "parts").rglob("result.json"))
    assert run([*map(str, arguments), "--out", str(tmp_path / "parts")]) == 0
    whole, parts = (
        [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for path in (tmp_path / place).rglob("metrics.jsonl")
            for line in path.read_text().splitlines()
        ]
        for place in ("whole", "parts")
    )
    assert whole
    assert parts == whole


# --- data ---


def test_data_commands(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "list"]) == 0
    assert "ships with steppe" in capsys.readouterr().out
    assert run(["data", "check", str(drawings)]) == 0
    assert "every picture can be read" in capsys.readouterr().out
    sheet = tmp_path / "sheets" / "sheet.png"
    assert run(["data", "sheet", str(drawings), "--per-class", "3", "--out", str(sheet)]) == 0
    with Image.open(sheet) as picture:
        assert f"{picture.width} × {picture.height}" in capsys.readouterr().out

    root = shutil.copytree(drawings, tmp_path / "set")
    broken = next((root / "line" / "face").iterdir())
    broken.write_text("not a picture")
    assert run(["data", "check", str(root)]) == 1
    assert str(broken) in capsys.readouterr().out
