"""The experiment on large learning rates: its tables, its arithmetic of steps, and what it leaves as it is."""

from __future__ import annotations

import importlib
import json
import math
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / "examples" / "large_learning_rates"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return {name: importlib.import_module(name) for name in ("page", "train", "experiment")}


@pytest.fixture
def page(modules: dict[str, ModuleType]) -> Any:
    return modules["page"]


@pytest.fixture
def train(modules: dict[str, ModuleType]) -> Any:
    return modules["train"]


# --- the tables ---


def sgd(seed: int, accuracy: float, loss: float = 1.0, entropy: float = 1.5, **more: Any) -> dict[str, Any]:
    measured = {"held_out_accuracy": accuracy, "held_out_loss": loss, "held_out_entropy_own": entropy}
    methods = {name: dict(measured) for name in ("last", "average", "swad")}
    diversity = {"distance": 2.0, "cka": math.nan}
    trace = {"last": {"step": [10, 20], "loss": [2.0, 1.0 + seed], "accuracy": [0.1, 0.2]}}
    run = {"seed": seed, "optimizer": "sgd", "factor": 1.0, "methods": methods, "diversity": diversity, "trace": trace}
    return run | more


DIVERGED = {"seed": 1, "optimizer": "lookahead", "factor": 30.0, "diverged": 4, "trace": {}}


def test_cells_hold_a_number_for_each_seed(page: Any) -> None:
    found = page.cells([sgd(0, 0.5), sgd(1, 0.7), DIVERGED], "held_out_accuracy")
    assert found["last"] == {1.0: [0.5, 0.7]}
    assert found["swad"] == {1.0: [0.5, 0.7]}
    assert math.isnan(found["lookahead"][30.0][0])
    assert set(found) == {"last", "average", "swad", "lookahead"}


def test_a_rise_is_the_local_entropy_less_the_loss(page: Any) -> None:
    assert page.cells([sgd(0, 0.5, loss=1.0, entropy=1.25)], "held_out_rise_own")["average"] == {1.0: [0.25]}
    assert math.isnan(page.cells([sgd(0, 0.5)], "held_out_rise_same")["average"][1.0][0]), "not measured here"


def test_the_pull_is_shown_for_anchors_alone(page: Any) -> None:
    anchored = sgd(0, 0.5, optimizer="lookahead-anchor", diversity={"pull": 0.1})
    assert page.cells([sgd(0, 0.5), DIVERGED, anchored], "pull") == {"lookahead-anchor": {1.0: [0.1]}}


def test_a_summary_leaves_out_what_is_not_finite_and_counts_it(page: Any) -> None:
    assert page.summary([1.0, 3.0]) == (2.0, pytest.approx(1.0), 0)
    mean, error, lost = page.summary([1.0, math.nan, math.inf])
    assert (mean, lost) == (1.0, 2)
    assert math.isnan(error)


def test_a_cell_says_mean_error_and_what_is_lost(page: Any) -> None:
    assert page._cell([0.5, 0.7], 100, 1) == "60.0 ± 10.0"
    assert page._cell([0.5, math.nan], 100, 1) == "50.0 (1 not finite)"
    assert page._cell([math.nan, math.nan], 100, 1) == "not finite (2)"
    assert page._cell([], 100, 1) == "–"
    assert page._cell([20000.0], 1, 2) == "2.0e+04"


def test_the_table_and_the_page_take_diverged_runs_and_nan(page: Any, tmp_path: Path) -> None:
    runs = [sgd(0, 0.5), sgd(1, 0.7), DIVERGED]
    table = page.table(runs)
    assert "| last weights | 60.0 ± 10.0 | – |" in table
    assert "| lookahead | – | not finite (1) |" in table
    assert "| sgd | not finite (2) | – |" in table, "the similarity of features that are all alike"
    assert list(page.course(runs, 1.0).data[0].y) == [2.0, 1.5]
    written = page.write(tmp_path / "page.html", runs, "emoji", "line").read_text()
    assert "SGD at about alpha F" in written


# --- one run ---


def test_the_anchor_pulls_by_the_same_share_at_every_factor(train: Any) -> None:
    setting = train.Setting()
    assert {round(2 * setting.anchor(f) * setting.lr * f, 12) for f in (1.0, 3.0, 10.0, 30.0)} == {setting.pull}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 9}, "at least 10"),
        ({"steps": 300, "snapshots": 20}, "snapshots would be 7 steps apart"),
        ({"steps": 15, "snapshots": 1}, "snapshots must be at least 2"),
        ({"steps": 15}, "evaluations would be 0 steps apart"),
        ({"steps": 300, "k": 4}, "multiple of k = 4"),
    ],
)
def test_steps_that_do_not_divide_are_refused(train: Any, wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        train.Setting(**wrong)


class Small:
    """Pictures of two numbers, and a linear network (or one with batch normalisation)."""

    classes = 2

    def __init__(self, norm: bool = False, gradient: Any = None) -> None:
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(32, 2, generator=generator)
        self.validation = self.answer = [(x, (x[:, 0] > 0).long())]
        self.norm, self.gradient = norm, gradient

    def network(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 4), *([nn.BatchNorm1d(4)] if self.norm else []), nn.Linear(4, 2))
        if self.gradient is not None:
            model[0].weight.register_hook(self.gradient)
        return model

    def batch(self, per_domain: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(per_domain, 2, generator=generator)
        return x, (x[:, 0] > 0).long()


def trained(train: Any, steps: int, optimizer: str = "lookahead", trace: Any = None, **made: Any) -> Any:
    torch.manual_seed(0)
    pictures = Small(**made)
    model = pictures.network()
    fresh = [x for x, _ in pictures.validation]
    trace = trace or train.Trace(model, pictures.validation, fresh)
    setting = train.Setting(steps=steps, evaluations=2 * (steps // 10), snapshots=2)
    averages = {}
    if optimizer == "sgd":
        averages = {"average": train.averaging.SWA(model, start=2), "swad": train.steppe.SWAD(model)}
    generator = torch.Generator().manual_seed(1)
    return train._train(model, pictures, optimizer, 3.0, setting, generator, averages, [], [], trace), trace


def test_in_mid_round_the_slow_weights_are_what_is_measured(train: Any) -> None:
    whole, _ = trained(train, 20)
    more, _ = trained(train, 23)
    assert all(torch.equal(whole["lookahead"][name], more["lookahead"][name]) for name in whole["lookahead"])


@pytest.mark.filterwarnings("ignore:SWAD found no valley")
@pytest.mark.parametrize("optimizer", ["sgd", "lookahead-mean-anchor"])
def test_what_is_recorded_on_the_way_leaves_training_as_it_is(train: Any, optimizer: str) -> None:
    class Blind:
        def see(self, *_: Any) -> None:
            pass

    watched, trace = trained(train, 40, optimizer, norm=True)
    alone, _ = trained(train, 40, optimizer, Blind(), norm=True)
    for name, weights in alone.items():
        assert all(torch.equal(weights[key], watched[name][key]) for key in weights)
    steps = {name: row["step"] for name, row in trace.rows.items()}
    if optimizer == "sgd":
        assert steps == {"last": [10, 20, 30], "average": [10, 20, 30]}
    else:
        assert steps == {f"{optimizer} fast": [9, 19, 29, 39], optimizer: [9, 19, 29, 39]}


@pytest.mark.filterwarnings("ignore:SWAD found no valley")
def test_a_run_ends_its_trace_with_every_average_and_tells_the_pull(train: Any) -> None:
    setting = train.Setting(steps=20, evaluations=4, snapshots=2, samples=2)
    found = train.run(Small(norm=True), "sgd", 3.0, 0, setting)
    assert {name: row["step"] for name, row in found["trace"].items()} == {
        "last": [10, 20],
        "average": [10, 20],
        "swad": [20],
    }
    assert "pull" not in found["diversity"]
    anchored = train.run(Small(norm=True), "lookahead-anchor", 3.0, 0, setting)
    assert anchored["diversity"]["pull"] > 0
    assert anchored["diversity"]["relative_distance"] < anchored["diversity"]["distance"]
    json.dumps(found)


def test_weights_that_are_not_finite_after_the_last_step_are_a_divergence(train: Any) -> None:
    calls = []

    def gradient(found: Tensor) -> Tensor:
        calls.append(found)
        return found * (math.inf if len(calls) == 20 else 1.0)

    setting = train.Setting(steps=20, evaluations=4, snapshots=2, samples=2)
    found = train.run(Small(gradient=gradient), "lookahead", 1.0, 0, setting)
    assert found["diverged"] == 20
    assert found["trace"]["lookahead"]["step"] == [9, 19], "what was seen until then is kept"


# --- all runs ---


def test_a_run_that_fails_loses_no_other_and_ends_the_queue(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment: Any = modules["experiment"]

    def fails(pictures: Any, optimizer: str, factor: float, seed: int, setting: Any) -> dict[str, Any]:
        if optimizer == "lookahead":
            raise RuntimeError("no memory")
        time.sleep(0.0 if optimizer == "sgd" else 0.5)
        return {"diverged": 1, "seconds": 0.0}

    monkeypatch.setattr(experiment, "load", lambda *_, **__: None)
    monkeypatch.setattr(experiment, "run", fails)  # the workers are forked
    options = experiment.Options(data="emoji", out=tmp_path, seeds=4, factors=(1.0,), jobs=1)
    with pytest.raises(RuntimeError, match="no memory"):
        experiment.main(options)
    kept = {path.name for path in (tmp_path / "emoji-line").glob("seed*")}
    assert "seed0-sgd-1x.json" in kept
    assert len(kept) < 16, "what was queued is not begun"
    assert json.loads((tmp_path / "emoji-line" / "seed0-sgd-1x.json").read_text())["optimizer"] == "sgd"
