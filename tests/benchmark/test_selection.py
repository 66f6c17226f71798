"""The rules of model selection against transcriptions of DomainBed's, which work on its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.benchmark.selection import (
    SELECTIONS,
    Checkpoint,
    Draw,
    MissingRunsError,
    Selection,
    Trained,
    selection,
)
from steppe.errors import SteppeError

Record = dict[str, Any]
DOMAINS = ("A", "C", "P", "S")


# --- what DomainBed does, on lists of its records, from its description ---


def runs_of(records: list[Record], draw: int) -> list[Record]:
    return [record for record in records if record["hparams_seed"] == draw]


def alone(records: list[Record]) -> list[Record]:
    return [record for record in records if len(record["test_envs"]) == 1]


def transcribed_training(records: list[Record], target: int) -> tuple[float, float] | None:
    best = None
    for record in alone(records):
        out = [record[f"env{env}_out_acc"] for env in range(len(DOMAINS)) if env != target]
        pair = (float(np.mean(out)), record[f"env{target}_in_acc"])
        if best is None or pair[0] > best[0]:  # Python's max keeps the first
            best = pair
    return best


def transcribed_oracle(records: list[Record], target: int) -> tuple[float, float] | None:
    own = sorted(alone(records), key=lambda record: record["step"])
    return (own[-1][f"env{target}_out_acc"], own[-1][f"env{target}_in_acc"]) if own else None


def transcribed_leave_one_out(records: list[Record], target: int) -> tuple[float, float] | None:
    best = None
    for step in sorted({record["step"] for record in records}):
        here = [record for record in records if record["step"] == step]
        tests = alone(here)
        if len(tests) != 1:
            continue
        values = np.zeros(len(DOMAINS)) - 1
        for record in here:
            if len(record["test_envs"]) == 2:
                (other,) = set(record["test_envs"]) - {target}
                values[other] = record[f"env{other}_in_acc"]
        values = list(values[:target]) + list(values[target + 1 :])
        if any(value == -1 for value in values):
            continue
        pair = (float(np.sum(values) / (len(DOMAINS) - 1)), tests[0][f"env{target}_in_acc"])
        if best is None or pair[0] > best[0]:
            best = pair
    return best


TRANSCRIBED = {
    "training": transcribed_training,
    "oracle": transcribed_oracle,
    "leave-one-out": transcribed_leave_one_out,
}


def transcribed(name: str, records: list[Record], target: int) -> float:
    found = []
    for draw in sorted({record["hparams_seed"] for record in records}):
        pair = TRANSCRIBED[name](runs_of(records, draw), target)
        if pair is not None:
            found.append(pair)
    return sorted(found, key=lambda pair: pair[0])[::-1][0][1]


# --- the same runs as steppe has them ---


def trained(records: list[Record], target: int) -> Trained:
    rows = []
    for record in records:
        sources = [env for env in range(len(DOMAINS)) if env not in record["test_envs"]]
        crossed = {DOMAINS[env]: record[f"env{env}_in_acc"] for env in record["test_envs"]}
        rows.append(
            Checkpoint(
                step=record["step"],
                validation_accuracy=float(np.mean([record[f"env{env}_out_acc"] for env in sources])),
                held_out_accuracy=record[f"env{target}_in_acc"],
                held_out_accuracy_all=0.5,
                in_domain_accuracy=0.5,
                held_out_validation_accuracy=record[f"env{target}_out_acc"],
                cross_validation_accuracy=crossed if len(crossed) == 2 else {},
            )
        )
    return Trained(Path("run"), "id", DOMAINS, tuple(rows))


def draws(records: list[Record], target: int) -> list[Draw]:
    found = []
    for number in sorted({record["hparams_seed"] for record in records}):
        own = runs_of(records, number)
        pairs = {}
        for other in range(len(DOMAINS)):
            both = [record for record in own if set(record["test_envs"]) == {target, other}]
            if other != target and both:
                pairs[DOMAINS[other]] = trained(both, target)
        found.append(Draw(number, DOMAINS[target], trained(alone(own), target), {"lr": number}, pairs))
    return found


FRACTIONS = st.integers(0, 6).map(lambda sixth: sixth / 6)  # few values, so that ties are frequent


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Record], int]:
    target = draw(st.integers(0, 3))
    steps = sorted(draw(st.sets(st.integers(1, 20), min_size=1, max_size=4)))
    records = []
    for number in range(draw(st.integers(1, 4))):
        for other in (None, *(env for env in range(4) if env != target)):
            envs = [target] if other is None else sorted((target, other))
            for step in steps:
                accuracy = {f"env{env}_{part}_acc": draw(FRACTIONS) for env in range(4) for part in ("in", "out")}
                records.append({"test_envs": envs, "hparams_seed": number, "step": step, **accuracy})
    return records, target


@pytest.mark.parametrize("name", TRANSCRIBED)
@given(tables())
def test_a_rule_is_domainbeds(name: str, table: tuple[list[Record], int]) -> None:
    records, target = table
    chosen = selection(name).choose(draws(records, target))
    assert chosen.checkpoint.held_out_accuracy == transcribed(name, records, target)
    score, checkpoint = selection(name).best(chosen.draw)
    assert (score, checkpoint) == (chosen.score, chosen.checkpoint)
    pair = TRANSCRIBED[name](runs_of(records, chosen.draw.number), target)
    assert pair is not None
    assert score == pair[0]


@given(tables(), st.randoms())
def test_the_order_in_which_draws_are_given_does_not_matter(table: tuple[list[Record], int], random: Any) -> None:
    found = draws(*table)
    shuffled = random.sample(found, len(found))
    for rule in SELECTIONS.values():
        assert rule.choose(shuffled) == rule.choose(found)


# --- ties, and what each rule looks at ---


def run(*rows: tuple[int, float, float], oracle: float = 0.0, **crossed: float) -> Trained:
    """A run with these steps, validation accuracies and held-out accuracies."""
    points = [Checkpoint(step, val, held, 0.5, 0.5, oracle, crossed) for step, val, held in rows]
    return Trained(Path("run"), "id", ("A", "B", "C"), tuple(points))


def test_the_earliest_checkpoint_and_the_last_draw_win_a_tie() -> None:
    one = Draw(0, "A", run((1, 0.5, 0.1), (2, 0.5, 0.2)))
    two = Draw(1, "A", run((1, 0.4, 0.3), (2, 0.5, 0.4), (3, 0.5, 0.5)))
    chosen = selection("training").choose([one, two])
    assert (chosen.draw.number, chosen.checkpoint.step, chosen.checkpoint.held_out_accuracy) == (1, 2, 0.4)


def test_the_oracle_takes_the_last_checkpoint_whatever_came_before() -> None:
    early = Trained(
        Path("run"),
        "id",
        ("A", "B"),
        tuple(Checkpoint(step, 0.5, held, 0.5, 0.5, own) for step, held, own in ((1, 0.9, 0.9), (2, 0.1, 0.2))),
    )
    chosen = selection("oracle").choose([Draw(0, "A", early)])
    assert (chosen.score, chosen.checkpoint.held_out_accuracy) == (0.2, 0.1)


def test_leave_one_out_goes_by_the_steps_that_all_its_runs_have() -> None:
    main = run((1, 0.9, 0.1), (2, 0.1, 0.2), (3, 0.1, 0.3))
    with_b = run((1, 0, 0), (2, 0, 0), B=0.5, A=0.0)
    with_c = run((2, 0, 0), (3, 0, 0), C=0.25, A=0.0)
    chosen = selection("leave-one-out").choose([Draw(0, "A", main, crossed={"B": with_b, "C": with_c})])
    assert (chosen.score, chosen.checkpoint.step, chosen.checkpoint.held_out_accuracy) == (0.375, 2, 0.2)


# --- what is missing ---


def test_missing_runs_are_named() -> None:
    there = run((1, 0.5, 0.5))
    with pytest.raises(MissingRunsError, match="draw 3: no finished run holds out A alone"):
        selection("training").choose([Draw(0, "A", there), Draw(3, "A", None)])
    with pytest.raises(MissingRunsError, match="draw 0: no finished run holds out A and B, nor C"):
        selection("leave-one-out").choose([Draw(0, "A", there)])
    many = [Draw(number, "A", None) for number in range(9)]
    with pytest.raises(MissingRunsError, match="and 4 more"):
        selection("oracle").choose(many)


def test_lost_draws_are_passed_over_until_none_is_left() -> None:
    lost = [Draw(0, "A", None, lost="failed"), Draw(1, "A", None, lost="pruned")]
    left = Draw(2, "A", run((1, 0.1, 0.7)))
    for name in ("training", "oracle"):
        assert selection(name).choose([*lost, left]).draw is left
        with pytest.raises(MissingRunsError, match="draw 0 failed, draw 1 pruned"):
            selection(name).choose(lost)
    with pytest.raises(MissingRunsError, match="there is no draw"):
        selection("training").choose([])


VERSION_1: dict[str, Any] = {
    "id": "abc",
    "accuracy": {"A": {}, "B": {}, "C": {}},
    "selected_step": 40,
    "validation_accuracy": 0.8,
    "held_out_accuracy": 0.6,
    "held_out_accuracy_all": 0.61,
    "in_domain_accuracy": 0.8,
}


def test_a_result_of_version_1_serves_training_domain_validation_only() -> None:
    old = Trained.of(Path("store/run"), VERSION_1)
    draw = Draw(0, "A", old, crossed={"B": old, "C": old})
    chosen = selection("training").choose([draw])
    assert (chosen.checkpoint.step, chosen.checkpoint.held_out_accuracy, chosen.score) == (40, 0.6, 0.8)
    for name in ("oracle", "leave-one-out"):
        with pytest.raises(MissingRunsError, match=r"store/run/result\.json is of version 1, which has no table of"):
            selection(name).choose([draw])


def test_two_domains_are_too_few_to_leave_one_out() -> None:
    two = Trained(Path("run"), "id", ("A", "B"), run((1, 0.5, 0.5)).checkpoints)
    with pytest.raises(SteppeError, match="needs three domains, and there are 2"):
        selection("leave-one-out").best(Draw(0, "A", two))


def test_the_names_of_the_rules() -> None:
    assert list(SELECTIONS) == ["training", "leave-one-out", "oracle"]
    rules: list[Selection] = list(SELECTIONS.values())
    assert [rule.crosses for rule in rules] == [False, True, False]
    with pytest.raises(SteppeError, match="unknown selection 'trainin'; did you mean 'training'"):
        selection("trainin")
