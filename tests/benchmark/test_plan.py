"""The plan of a sweep as a file: read back, added to, damaged, written by several at once."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from steppe.benchmark.plan import (
    Cell,
    DamagedPlanError,
    Plan,
    PlannedDraw,
    draws_of,
    plan_directory,
    read_plan,
    read_plans,
    write_plan,
)
from steppe.benchmark.selection import Checkpoint, Trained

LINE = Cell("emoji", "f00", "erm", "line", 0)
NOTO = Cell("emoji", "f00", "disam", "noto", 1)


def draw(number: int, crossed: bool = False) -> PlannedDraw:
    other = {"noto": Path(f"emoji/erm/line/{number}x")} if crossed else {}
    return PlannedDraw(number, {"lr": 10.0**-number}, Path(f"emoji/erm/line/{number}"), other)


def plan() -> Plan:
    return Plan(
        id="abcdef012345",
        search="random",
        selection=("training", "oracle"),
        command="steppe bench",
        settings={"steps": 5},
        space={"emoji": {"erm": {"lr": {"range": "10^U(-5, -3.5)", "source": "us", "default": 5e-5}}}},
        cells={LINE: {0: draw(0), 1: draw(1, crossed=True)}},
    )


def path_of(root: Path) -> Path:
    return plan_directory(root, plan().id) / "sweep.json"


def silent(message: str) -> None:
    raise AssertionError(message)


def test_a_plan_reads_back(tmp_path: Path) -> None:
    assert write_plan(tmp_path, plan(), say=silent) == plan()
    assert read_plan(path_of(tmp_path)) == plan()
    assert read_plans(tmp_path) == ([plan()], [])
    content = json.loads(path_of(tmp_path).read_text())
    assert content["cells"][0]["draws"][1] == {
        "draw": 1,
        "values": {"lr": 0.1},
        "run": {"id": "1", "path": "emoji/erm/line/1"},
        "crossed": {"noto": {"id": "1x", "path": "emoji/erm/line/1x"}},
    }
    assert (content["command"], content["search"], content["space"]) == ("steppe bench", "random", plan().space)


def test_an_unchanged_plan_is_not_written_again(tmp_path: Path) -> None:
    write_plan(tmp_path, plan(), say=silent)
    stamp = path_of(tmp_path).stat().st_mtime_ns
    write_plan(tmp_path, plan(), say=silent)
    assert path_of(tmp_path).stat().st_mtime_ns == stamp


def test_a_plan_grows(tmp_path: Path) -> None:
    write_plan(tmp_path, plan(), say=silent)
    more = replace(plan(), cells={LINE: {1: draw(1), 2: draw(2)}, NOTO: {0: draw(0)}}, command="later")
    together = write_plan(tmp_path, more, say=silent)
    assert together.command == "later"
    assert {cell: sorted(found) for cell, found in together.cells.items()} == {LINE: [0, 1, 2], NOTO: [0]}
    assert together.cells[LINE][1].crossed == {"noto": Path("emoji/erm/line/1x")}, "kept from before"
    assert read_plan(path_of(tmp_path)) == together
    assert together.limited([LINE], 2).cells == plan().cells


@pytest.mark.parametrize(
    "content", ["{bad", "[]", "{}", '{"version": 2}', '{"version": 1, "cells": [3]}', '{"version": 1, "cells": 3}']
)
def test_a_damaged_plan_is_named_and_made_again(content: str, tmp_path: Path) -> None:
    write_plan(tmp_path, plan(), say=silent)
    path = path_of(tmp_path)
    path.write_text(content)
    with pytest.raises(DamagedPlanError, match=r"sweep\.json is damaged"):
        read_plan(path)
    plans, damaged = read_plans(tmp_path)
    assert plans == []
    assert [error.path for error in damaged] == [path]
    said: list[str] = []
    assert write_plan(tmp_path, plan(), say=said.append) == plan()
    assert str(path) in said[0]
    assert read_plan(path) == plan()


def add(root: Path, seed: int) -> None:
    for number in range(10):
        write_plan(root, replace(plan(), cells={replace(LINE, seed=seed): {number: draw(number)}}), say=silent)


def test_several_processes_add_to_one_plan(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=add, args=(tmp_path, seed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    found = read_plan(path_of(tmp_path))
    assert found is not None
    assert {cell.seed: sorted(draws) for cell, draws in found.cells.items()} == {
        seed: [*range(10)] for seed in range(3)
    }


def test_what_a_selection_does_not_look_at_loses_no_draw() -> None:
    done = Trained(Path("run"), "id", ("line", "noto"), (Checkpoint(1, 0.5, 0.5, 0.5, 0.5),))
    planned = {1: draw(1, crossed=True)}
    runs = {Path("emoji/erm/line/1"): done}
    lost = {Path("emoji/erm/line/1x"): "failed"}
    (plain,) = draws_of(LINE, planned, crosses=False, trained=runs.get, lost=lambda path: lost.get(path, ""))
    assert (plain.run, plain.crossed, plain.lost) == (done, {}, "")
    (crossed,) = draws_of(LINE, planned, crosses=True, trained=runs.get, lost=lambda path: lost.get(path, ""))
    assert (crossed.run, crossed.crossed, crossed.lost) == (done, {}, "failed")
