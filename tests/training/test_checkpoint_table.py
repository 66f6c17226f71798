"""The table of checkpoints in ``result.json``: what it says, that it survives a resume, and older and newer results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import metrics, outputs, result, small_config

from steppe.data import make_splits, open_dataset
from steppe.errors import SteppeError
from steppe.training import RunConfig, Trainer
from steppe.training.progress import Silent
from steppe.training.pruning import Pruned, read_pruned
from steppe.training.results import CHECKPOINT_FIELDS, DamagedResultError, NewerResultError, read_result


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def fit(config: RunConfig, out: Path, **options: Any) -> Path:
    Trainer(config, out=out, command="test", **options).fit()
    return out


# --- what it says ---


@pytest.mark.parametrize(
    ("dataset", "answer", "selects"),
    [("drawings", "in", "out"), ("emoji", "test", "validation")],
    ids=["80/20", "strict"],
)
def test_a_row_for_each_evaluation_says_what_the_log_says(
    dataset: str, answer: str, selects: str, drawings: Path, tmp_path: Path
) -> None:
    spec = drawings if dataset == "drawings" else dataset
    run = fit(small_config(spec, steps=5, eval_every=2), tmp_path)
    rows = result(run)["checkpoints"]
    lines = [line for line in metrics(run) if line["kind"] == "eval"]
    assert [row["step"] for row in rows] == [line["step"] for line in lines] == [2, 4, 5]
    sources = [domain for domain in open_dataset(spec).domains if domain != "line"]
    for row, line in zip(rows, lines, strict=True):
        assert tuple(row) == CHECKPOINT_FIELDS
        accuracy, loss = line["accuracy"], line["loss"]
        assert row["validation_accuracy"] == np.mean([accuracy[domain][selects] for domain in sources])
        assert row["validation_loss"] == np.mean([loss[domain][selects] for domain in sources])
        assert row["held_out_accuracy"] == accuracy["line"][answer]
        assert row["held_out_accuracy_all"] == accuracy["line"]["all"]
        assert row["held_out_validation_accuracy"] == accuracy["line"][selects]
        in_domain = "out" if selects == "out" else "test"
        assert row["in_domain_accuracy"] == pytest.approx(np.mean([accuracy[d][in_domain] for d in sources]), abs=1e-15)


def test_the_selected_checkpoint_is_a_row_of_it(drawings: Path, tmp_path: Path) -> None:
    content = result(fit(small_config(drawings), tmp_path))
    (row,) = (row for row in content["checkpoints"] if row["step"] == content["selected_step"])
    for name in ("validation_accuracy", "held_out_accuracy", "held_out_accuracy_all", "in_domain_accuracy"):
        assert content[name] == row[name]


@pytest.mark.parametrize("algorithm", ["swa", "ema", "sam+swad"])
def test_an_average_has_one_checkpoint(algorithm: str, drawings: Path, tmp_path: Path) -> None:
    content = result(fit(small_config(drawings, algorithm=algorithm, hyper={"bn_batches": 1}), tmp_path))
    (row,) = content["checkpoints"]
    assert row["step"] == content["steps"], "whatever the last step that it averages"
    for name in ("validation_accuracy", "held_out_accuracy", "in_domain_accuracy"):
        assert row[name] == content[name]


def test_re_estimated_statistics_make_one_checkpoint_too(drawings: Path, tmp_path: Path) -> None:
    hyper: dict[str, Any] = {"k": 3, "bn_batches": 1}
    trained = result(fit(small_config(drawings, algorithm="lookahead", hyper=hyper), tmp_path / "trained"))
    assert [row["step"] for row in trained["checkpoints"]] == [12]
    assert trained["checkpoints"][0]["held_out_accuracy"] == trained["held_out_accuracy"]
    frozen = small_config(drawings, algorithm="lookahead", hyper=hyper, frozen_batch_norm=True)
    assert [row["step"] for row in result(fit(frozen, tmp_path / "frozen"))["checkpoints"]] == [4, 8, 12]


# --- two domains held out ---


def test_two_domains_that_are_not_trained_on(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, held_out="fluent", validation_domain="line", steps=4, eval_every=2)
    run = fit(config, tmp_path)
    content, stored = result(run), json.loads((run / "config.json").read_text())
    assert (stored["held_out"], stored["validation_domain"]) == ("fluent", "line")
    assert (content["held_out"], content["validation_domain"]) == ("fluent", "line")
    trained = {domain for line in metrics(run) if line["kind"] == "train" for domain in line["domain_loss"]}
    assert trained == {"noto"}
    lines = [line for line in metrics(run) if line["kind"] == "eval"]
    for row, line in zip(content["checkpoints"], lines, strict=True):
        accuracy = line["accuracy"]
        assert row["cross_validation_accuracy"] == {domain: accuracy[domain]["in"] for domain in ("fluent", "line")}
        assert row["validation_accuracy"] == accuracy["noto"]["out"]
        assert row["held_out_accuracy"] == accuracy["fluent"]["in"]
    predictions = json.loads((run / "predictions.json").read_text())
    assert {d: len(rows) for d, rows in predictions.items()} == {"fluent": 24, "noto": 6, "line": 24}


def test_cross_validation_does_not_see_the_concepts_of_a_strict_answer() -> None:
    emoji = open_dataset("emoji")
    one, two = make_splits(emoji, "line"), make_splits(emoji, "line", validation_domain="noto")
    assert (two.cross_validates, two.unseen, set(two.train)) == ("validation", ("line", "noto"), {"fluent", "twemoji"})
    names = emoji.concepts("noto")
    answers = emoji.concepts("line")
    assert names is not None
    assert answers is not None
    seen = set(names[two.evaluation["noto"][two.cross_validates]].tolist())
    assert not seen & set(answers[two.evaluation["line"][two.answer]].tolist())
    for domain in emoji.domains:
        for part, indices in two.evaluation[domain].items():
            assert np.array_equal(indices, one.evaluation[domain][part]), "the cut is the same with and without"


def test_the_second_domain_is_part_of_a_runs_identity_only_where_there_is_one() -> None:
    plain, both = small_config("emoji"), small_config("emoji", validation_domain="noto")
    canonical = [one.canonical(dataset="emoji", fingerprint="f", split="strict") for one in (plain, both)]
    assert "validation_domain" not in canonical[0]
    assert canonical[1] == {**canonical[0], "validation_domain": "noto"}


def test_wrong_second_domains(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match="the validation domain 'line' is the held-out domain"):
        small_config(drawings, validation_domain="line")
    with pytest.raises(SteppeError, match=r"unknown domain 'nooto' of .*; did you mean 'noto'"):
        Trainer(small_config(drawings, validation_domain="nooto"), out=tmp_path)
    two = open_dataset(drawings)
    two.domains = ("noto", "line")
    with pytest.raises(SteppeError, match="has two domains; holding out both, 'line' and 'noto', leaves nothing"):
        Trainer(small_config(drawings, validation_domain="noto"), out=tmp_path, dataset=two)


# --- a run that is stopped as not worth finishing ---


def test_a_run_is_pruned_where_it_is_told_to(drawings: Path, tmp_path: Path) -> None:
    whole = fit(small_config(drawings), tmp_path / "whole")
    asked: list[tuple[int, float]] = []

    def stop(step: int, accuracy: float) -> bool:
        asked.append((step, accuracy))
        return step == 8

    run = tmp_path / "run"
    with pytest.raises(Pruned, match="was pruned at step 8 of 12") as caught:
        fit(small_config(drawings), run, evaluated=stop)
    assert caught.value.step == 8
    rows = result(whole)["checkpoints"]
    assert asked == [(row["step"], row["validation_accuracy"]) for row in rows[:2]]
    assert read_pruned(run) == asked
    assert {path.name for path in run.iterdir()} == {".lock", "config.json", "metrics.jsonl", "pruned.json"}
    # Asked for without a search, it is trained after all.
    assert outputs(fit(small_config(drawings), run)) == outputs(whole)


def test_at_the_last_step_there_is_nothing_to_save(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, steps=4, eval_every=4)
    assert result(fit(config, tmp_path, evaluated=lambda step, accuracy: True))["selected_step"] == 4


# --- results that are damaged, older or newer ---


@pytest.mark.parametrize(
    "damage",
    [
        {"checkpoints": None},
        {"checkpoints": []},
        {"checkpoints": [{"step": 4}]},
        {"checkpoints": [dict.fromkeys(CHECKPOINT_FIELDS, 2)]},
        {"checkpoints": [dict.fromkeys(CHECKPOINT_FIELDS, 1)] * 2},
        {"seed": "x"},
    ],
    ids=["no table", "empty", "a field", "no fraction", "order", "another field"],
)
def test_a_damaged_result_is_named_and_made_again(damage: dict[str, Any], drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, steps=2, eval_every=2)
    whole = fit(config, tmp_path / "whole")
    run = fit(config, tmp_path / "run")
    path = run / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    broken = path.read_text()
    with pytest.raises(DamagedResultError, match=r"result\.json is damaged"):
        read_result(run)
    report = Listening()
    fit(config, run, report=report)
    (message,) = report.said
    assert str(path) in message
    assert "trained again" in message
    aside = run / "result.json.damaged"
    assert aside.read_text() == broken
    aside.unlink()
    assert outputs(run) == outputs(whole)


def test_a_result_of_version_1_is_read(drawings: Path, tmp_path: Path) -> None:
    run = fit(small_config(drawings), tmp_path)
    path = run / "result.json"
    content = json.loads(path.read_text())
    del content["checkpoints"]
    path.write_text(json.dumps({**content, "version": 1}))
    stamp = path.stat().st_mtime_ns
    found = Trainer(small_config(drawings), out=run).fit()
    assert found.held_out_accuracy == content["held_out_accuracy"]
    assert found.checkpoints is None
    assert path.stat().st_mtime_ns == stamp


def test_a_result_of_a_later_version_is_neither_used_nor_replaced(drawings: Path, tmp_path: Path) -> None:
    run = fit(small_config(drawings), tmp_path)
    path = run / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 3}))
    before = path.read_text()
    with pytest.raises(NewerResultError, match="a later steppe wrote it"):
        Trainer(small_config(drawings), out=run).fit()
    assert path.read_text() == before
