"""`steppe list`: the words in a table, one of them or a sum in detail."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tomllib

import pytest
import torch
from torch import nn

import steppe
from steppe.cli import run
from steppe.cli.parse import parse
from steppe.training.hyper import WORDS
from steppe.training.recipes import parse as parse_sum
from steppe.training.words import SHARED, SLOTS


def printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str, columns: int = 80
) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["list", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 200])
def test_all_words_with_slot_summary_defaults_and_source(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = printed(capsys, monkeypatch, columns=columns)
    assert max(map(len, page.splitlines())) <= columns
    sections = page.split("\n\n")
    for word in WORDS.values():
        (section,) = [part for part in sections if f"\n{word.name} " in part]
        assert section.startswith(f"{word.slot}: {SLOTS[word.slot]}" if word.slot else "the plain steps")
        row = row_of(section, word.name)
        for part in (*word.summary.split(), *word.source.split()):
            assert part in row, word.name
        for parameter in word.parameters:
            if parameter.default not in (None, False):
                assert parameter.name in row, word.name
        also = row.partition("answers too: ")[2]
        answered = {slot.partition(",")[0].strip() for slot in also.split(";")} - {""}
        assert answered | {word.slot} - {""} == {*word.fills, *word.offers}, word.name
        assert also.count("if no other word does") == len(word.offers), word.name


def row_of(section: str, name: str) -> str:
    """A row of a table whose cells may go over several lines."""
    lines = iter(section.splitlines())
    first = next(line for line in lines if line.startswith(f"{name} "))
    return " ".join([first, *itertools.takewhile(lambda line: line.startswith(" "), lines)])


def test_the_table_does_not_wait_for_torch() -> None:
    script = "import sys; from steppe.cli import run; run(['list']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


SUMS = ("erm", "fishr", "disam", "coral+disam+sagm", "tram+looksam", "gsam+looksam+mixup", "mesa+r3f+groupdro+fsam")


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_in_detail(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = printed(capsys, monkeypatch, name)
    assert max(map(len, page.splitlines())) <= 80
    recipe = parse_sum(name)
    assert page.startswith(f"{recipe.name}\n")
    flat = " ".join(page.split())
    for word in recipe.words:
        assert f"{word.summary} ({word.source})" in flat
    for full, parameter in recipe.names.parameters.items():
        assert f"\n{parameter.name if parameter.name in SHARED else full} " in page
        assert parameter.meaning in " ".join(line[24:] for line in page.splitlines()) or parameter.meaning in flat


@pytest.mark.parametrize("name", SUMS)
def test_its_examples_work(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = printed(capsys, monkeypatch, name)
    command, rest = page.partition("on the command line\n")[2].split("in a file for --config\n")
    file, program = rest.split("in a training loop of your own\n")
    words = command.replace("\\\n", " ").split()
    assert words[:2] == ["steppe", "train"]
    by_options = parse(words[1:])
    by_file = tomllib.loads(file)
    assert by_options.algorithm == by_file["algorithm"] == parse_sum(name).name  # type: ignore[union-attr]
    given = by_options.settings.given  # type: ignore[union-attr]
    model = nn.Sequential(nn.Linear(2, 2))
    model.head = model[0]  # type: ignore[assignment]
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    scope: dict[str, object] = {"steppe": steppe.training, "base": base, "model": model}
    exec("\n".join(line.removeprefix("  ") for line in program.splitlines()), scope)
    method = scope["method"]
    assert isinstance(method, steppe.training.Method)
    assert method.name == by_file["algorithm"]
    recipe = parse_sum(name)
    assert recipe.hyper(given) == recipe.hyper(steppe.training.hyper.flat(by_file.get("hyper", {}))) == recipe.hyper()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("tram", "geometry tram Adaptive(eta=0), as long as no other word answers"),
        ("fsam", "radius fsam its gamma"),
        ("sam", "radius the number rho"),
    ],
)
def test_what_answers_beside_a_word_s_own_question(
    name: str, answer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer in " ".join(printed(capsys, monkeypatch, name).split())


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("erm", "A step takes 1 pass, as erm (forward and backward)."),
        ("coral", "A step takes 1 pass, as erm (forward and backward)."),
        ("sam", "A step takes 2 passes, to erm's 1 (forward and backward)."),
        ("disam+sagm", "A step takes 3 passes, to erm's 1 (forward and backward)."),
        ("tram-fisher", "A step takes 3 passes, to erm's 1 (forward and backward)."),
        ("tram-fisher-shared", "A step takes 2 passes, to erm's 1 (forward and backward)."),
        ("tram", "(forward and backward); one more forward pass without gradient."),
        ("looksam", "(forward and backward); one pass at the steps between the climbs."),
    ],
)
def test_what_a_step_costs(
    name: str, cost: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cost in " ".join(printed(capsys, monkeypatch, name).split())


@pytest.mark.parametrize(
    ("name", "saves"),
    [
        ("gsam", False),
        ("sagm+tram-fisher", False),
        ("looksam", False),
        ("gsam+tram-fisher-shared", True),
        ("disam+sagm", True),
        ("disam+looksam", True),
    ],
)
def test_a_shared_pass_is_promised_where_it_is_saved(
    name: str, saves: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = " ".join(printed(capsys, monkeypatch, name, columns=200).split())
    assert ("here only with an ascent_fraction below 1" not in page) is saves
    passes = {}
    for fraction in (1.0, 0.5):
        for shared in (False, True):
            model = nn.Linear(2, 2)
            base = torch.optim.SGD(model.parameters(), lr=0.1)
            method = steppe.build(name, base, model, {"ascent_fraction": fraction, "shared": shared})
            passes[fraction, shared] = len(list(method.optimizer.passes()))
    assert (passes[1.0, True] < passes[1.0, False]) is saves
    assert passes[0.5, True] == passes[0.5, False] - 1
