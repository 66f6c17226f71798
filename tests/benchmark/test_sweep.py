"""Whole small sweeps: searched, killed, continued, shared, selected."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import process, small_config

from steppe.benchmark.executor import InProcess
from steppe.benchmark.options import SearchOptions
from steppe.benchmark.protocol import Job, crossed
from steppe.benchmark.selection import selection
from steppe.benchmark.store import Store, status
from steppe.benchmark.sweep import Request, Sweep, fixed_settings, with_values
from steppe.data import open_dataset
from steppe.errors import SteppeError
from steppe.report import load_selected
from steppe.training import Machine, Settings
from steppe.training.progress import Silent
from steppe.training.session import Session

NAMES = ("backbone", "pretrained", "frozen_batch_norm", "image_size", "optimizer")
RANDOM = SearchOptions(draws=3)
ONE_THREAD = Machine(threads=1)  # the same bits in every process
TPE = SearchOptions(search="tpe", trials=4)


def settings(drawings: Path, **changes: Any) -> Settings:
    small = {name: getattr(small_config(drawings), name) for name in NAMES}
    return Settings(**{**small, "steps": 4, "eval_every": 2, "batch_per_domain": 3, **changes})


def sweep(drawings: Path, root: Path, search: SearchOptions = RANDOM, **changes: Any) -> Sweep:
    request: dict[str, Any] = {
        "algorithms": ["disam"],
        "held_out": ["line"],
        "seeds": [0],
        "settings": settings(drawings),
        "search": search,
        "command": "test",
    }
    return Sweep(Store(root), open_dataset(drawings), Request(**{**request, **changes}))


def done(sweep: Sweep, executor: InProcess | None = None) -> list[Job]:
    """All its jobs, once they are done."""
    executor = executor or InProcess(sweep.dataset, ONE_THREAD, Silent(), "test")
    made: list[Job] = []
    for jobs in sweep.rounds():
        made += jobs
        for _ in executor.run([job for job in jobs if status(job.directory) != "finished"]):
            pass
    return made


@pytest.mark.parametrize("algorithm", ["disam+lookahead", "sagm+swad"])
def test_a_sweep_of_sums_that_act_on_the_trajectory(algorithm: str, drawings: Path, tmp_path: Path) -> None:
    hyper = {"k": 2} if "lookahead" in algorithm else {"n_converge": 1, "n_tolerance": 1}
    plan = SearchOptions(draws=2, fixed=("batch_per_domain",))
    small = settings(drawings, hyper={**hyper, "bn_batches": 2})
    made = done(sweep(drawings, tmp_path, plan, algorithms=[algorithm], settings=small))
    assert [status(job.directory) for job in made] == ["finished"] * 2
    full = {f"{algorithm.rpartition('+')[2]}.{name}": value for name, value in hyper.items()}
    for job in made:
        config, result = (json.loads((job.directory / f"{name}.json").read_text()) for name in ("config", "result"))
        assert config["algorithm"] == algorithm
        assert config["hyper"].items() >= full.items()
        assert ("average" in result) == ("swad" in algorithm)
        assert result["batch_norm_batches"] == 2


def found(root: Path) -> dict[str, Any]:
    """What a sweep leaves behind, times aside: results, what was pruned, plan."""
    times = ("seconds", "seconds_per_step", "finished", "command", "time")
    files = [path for name in ("result.json", "pruned.json", "sweep.json") for path in root.rglob(name)]
    contents = {str(path.relative_to(root)): json.loads(path.read_text()) for path in files}
    return {path: {k: v for k, v in content.items() if k not in times} for path, content in contents.items()}


def test_a_draw_is_a_run_with_these_settings_and_the_plan_says_which(drawings: Path, tmp_path: Path) -> None:
    made = sweep(drawings, tmp_path, seeds=[0, 1], algorithms=["erm", "disam"])
    jobs = done(made)
    assert len({job.directory for job in jobs}) == len(jobs) == 3 * 2 * 2
    order = [(job.config.seed, made.draws(job), job.config.algorithm) for job in jobs]
    assert order == [
        (seed, [f"draw {draw}"], algorithm) for seed in (0, 1) for draw in range(3) for algorithm in ("erm", "disam")
    ]
    assert made.plan is not None
    for cell, draws in made.plan.cells.items():
        for draw in draws.values():
            config = json.loads((tmp_path / draw.run / "config.json").read_text())
            assert (config["algorithm"], config["held_out"], config["seed"]) == (cell.algorithm, "line", cell.seed)
            flat = {**config, **config["hyper"]}
            assert {name: flat[name] for name in draw.values} == draw.values
            assert config["batch_per_domain"] == 3, "it differs from its default, so it is not drawn"
            assert set(draw.values) <= {"lr", "weight_decay", "dropout", "disam.rho", "disam.lam"}
    trials = [made.plan.cells[cell][1].values["lr"] for cell in made.cells if cell.algorithm == "erm"]
    assert len(set(trials)) == 2, "each trial has draws of its own, as in DomainBed"
    (content,) = (json.loads(path.read_text()) for path in (tmp_path / "sweeps").glob("*/sweep.json"))
    assert content["space"]["drawings"]["disam"]["disam.lam"]["range"] == "U(0.1, 0.7)"
    assert content["command"] == "test"


def test_a_longer_search_goes_on_with_the_shorter_ones_plan(drawings: Path, tmp_path: Path) -> None:
    first = done(sweep(drawings, tmp_path, SearchOptions(draws=2)))
    stamps = [(job.directory / "result.json").stat().st_mtime_ns for job in first]
    longer = sweep(drawings, tmp_path, RANDOM, algorithms=["disam", "erm"])
    done(longer)
    assert [(job.directory / "result.json").stat().st_mtime_ns for job in first] == stamps
    assert len(list((tmp_path / "sweeps").iterdir())) == 1
    shorter = sweep(drawings, tmp_path, SearchOptions(draws=2))
    done(shorter)
    assert shorter.plan is not None
    assert [len(draws) for draws in shorter.plan.cells.values()] == [2]
    others = [SearchOptions(draws=2, fixed=("lr",)), SearchOptions(search="tpe", trials=1)]
    for search in others:
        done(sweep(drawings, tmp_path, search))
    assert len(list((tmp_path / "sweeps").iterdir())) == 3, "searched otherwise, so another plan"


def test_a_job_can_be_sent_to_another_process(drawings: Path, tmp_path: Path) -> None:
    (job,) = next(sweep(drawings, tmp_path, TPE).rounds())
    sent = pickle.loads(pickle.dumps(job))
    assert sent == job
    assert sent.stop is not None
    assert sent.stop(2, 0.5) is False, "the first trials are never stopped"
    assert len(pickle.dumps(job)) < 5000


def test_a_plain_comparison_has_no_plan(drawings: Path, tmp_path: Path) -> None:
    plain = sweep(drawings, tmp_path, SearchOptions())
    assert len(done(plain)) == 1
    assert plain.plan is None
    assert not (tmp_path / "sweeps").exists()


def test_two_domains_are_held_out_where_a_selection_asks_for_it(drawings: Path, tmp_path: Path) -> None:
    rules = tuple(selection(name) for name in ("leave-one-out", "training"))
    made = sweep(drawings, tmp_path, SearchOptions(draws=2), held_out=["all"], selections=rules)
    jobs = done(made)
    held_out = [(job.config.held_out, job.config.validation_domain) for job in jobs]
    singles = [("fluent", None), ("line", None), ("noto", None)]
    pairs = [("fluent", "line"), ("fluent", "noto"), ("line", "noto")]
    assert sorted(held_out, key=str) == sorted([*singles, *pairs] * 2, key=str), "a pair serves both of its domains"
    chosen = load_selected(tmp_path)
    assert [choice.how for choice in chosen.choices] == [
        "best of 2 random draws by leave-one-domain-out cross-validation"
    ] * 3
    for choice in chosen.choices:
        assert made.plan is not None
        scores = {}
        for number, draw in made.plan.cells[choice.cell].items():
            steps: dict[int, list[float]] = {}
            for other, path in draw.crossed.items():
                for row in json.loads((tmp_path / path / "result.json").read_text())["checkpoints"]:
                    steps.setdefault(row["step"], []).append(row["cross_validation_accuracy"][other])
            scores |= {(sum(two) / 2, number, -step): draw.run for step, two in steps.items()}
        best = max(score for score, *_ in scores)
        number = max(number for score, number, _ in scores if score == best)
        step = min(-minus for score, n, minus in scores if (score, n) == (best, number))
        assert (choice.draw, choice.step) == (number, step)
        (row,) = (
            row
            for row in json.loads((choice.run.path / "result.json").read_text())["checkpoints"]
            if row["step"] == step
        )
        assert choice.run.held_out_accuracy == row["held_out_accuracy"]


def cross_validated(made: Sweep, root: Path) -> dict[int, float]:
    """Draw → the largest mean over the two other domains, by hand from the results of the only cell."""
    assert made.plan is not None
    (draws,) = made.plan.cells.values()
    scores = {}
    for number, draw in draws.items():
        tables = {
            other: json.loads((root / path / "result.json").read_text())["checkpoints"]
            for other, path in draw.crossed.items()
        }
        assert set(tables) == {"fluent", "noto"}
        columns = [[row["cross_validation_accuracy"][other] for row in rows] for other, rows in tables.items()]
        scores[number] = max(sum(row) / 2 for row in zip(*columns, strict=True))
    return scores


def test_a_search_maximises_what_its_first_selection_says(drawings: Path, tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    made = sweep(drawings, tmp_path, SearchOptions(search="tpe", trials=3), selections=(selection("leave-one-out"),))
    jobs = done(made)
    assert len(jobs) == 3 * 3
    assert {job.stop for job in jobs} == {None}, "nothing is pruned by what is not maximised"
    (journal,) = tmp_path.rglob("*.journal")
    study = optuna.load_study(study_name="steppe", storage=JournalStorage(JournalFileBackend(str(journal))))
    assert {trial.number: trial.value for trial in study.trials} == pytest.approx(cross_validated(made, tmp_path))


def test_cross_validation_chooses_a_checkpoint_where_nothing_is_searched(drawings: Path, tmp_path: Path) -> None:
    made = sweep(drawings, tmp_path, SearchOptions(), selections=(selection("leave-one-out"),))
    assert len(done(made)) == 3
    (choice,) = load_selected(tmp_path).choices
    assert (choice.draw, choice.of, choice.values) == (0, 1, {})
    assert choice.how == "checkpoint by leave-one-domain-out cross-validation"
    (score,) = cross_validated(made, tmp_path).values()
    assert made.plan is not None
    (draws,) = made.plan.cells.values()
    rows = {
        other: {row["step"]: row for row in json.loads((tmp_path / path / "result.json").read_text())["checkpoints"]}
        for other, path in draws[0].crossed.items()
    }
    there = [rows[other][choice.step]["cross_validation_accuracy"][other] for other in ("fluent", "noto")]
    assert sum(there) / 2 == pytest.approx(score)


def test_the_runs_that_hold_out_two_domains() -> None:
    config = small_config("emoji", held_out="noto")
    pairs = crossed(config, ("fluent", "noto", "twemoji", "line"))
    assert {other: (one.held_out, one.validation_domain) for other, one in pairs.items()} == {
        "fluent": ("fluent", "noto"),
        "twemoji": ("noto", "twemoji"),
        "line": ("noto", "line"),
    }


# --- killed, shared, failed ---


def drive(drawings: Path, root: Path, search: SearchOptions) -> None:
    """A driver in a process of its own."""
    made = sweep(drawings, root, search, algorithms=["disam", "erm"])
    done(made, InProcess(made.dataset, ONE_THREAD, Silent(), "test"))


def drive_until_results(drawings: Path, root: Path, search: SearchOptions, results: int) -> None:
    """A driver that is killed right after so many results were written."""
    replace: Callable[..., Any] = Path.replace
    left = results

    def dying(self: Path, target: Path) -> Any:
        nonlocal left
        moved = replace(self, target)
        left -= Path(target).name == "result.json"
        if left == 0 and Path(target).name == "result.json":
            os.kill(os.getpid(), signal.SIGKILL)
        return moved

    Path.replace = dying  # type: ignore[method-assign, assignment]
    drive(drawings, root, search)


@pytest.mark.slow
@pytest.mark.parametrize("search", [RANDOM, TPE], ids=["random", "tpe"])
def test_killed_and_continued_a_search_ends_with_the_same_runs(
    search: SearchOptions, drawings: Path, tmp_path: Path
) -> None:
    drive(drawings, tmp_path / "whole", search)
    root = tmp_path / "killed"
    for results in (1, 2, 1):
        child = process(drive_until_results, drawings, root, search, results)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    child = process(drive, drawings, root, search)
    while child.exitcode is None and len(list(root.rglob("config.json"))) < 5:
        time.sleep(0.002)
    child.kill()
    child.join()
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("result.json")}
    assert len(stamps) >= 4
    drive(drawings, root, search)
    assert found(root) == found(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "nothing is done twice"


@pytest.mark.slow
@pytest.mark.parametrize("search", [RANDOM, TPE], ids=["random", "tpe"])
def test_two_drivers_on_one_store_share_the_runs(search: SearchOptions, drawings: Path, tmp_path: Path) -> None:
    drive(drawings, tmp_path / "whole", search)
    children = [process(drive, drawings, tmp_path / "shared", search) for _ in range(2)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert found(tmp_path / "shared") == found(tmp_path / "whole")
    for path in (tmp_path / "shared").rglob("metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines() if '"train"' in line]
        assert steps == sorted(set(steps)), "trained once"


def test_draws_that_fail_are_passed_over(drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_step = Session.make_step
    for name, search in (("random", RANDOM), ("tpe", TPE)):
        root, seen = tmp_path / name, []

        def broken(self: Session, batch: Any) -> None:
            if self.step == 0:
                seen.append(self)  # noqa: B023 - called in this turn
            if len(seen) == 2:  # noqa: B023
                raise MemoryError("out of memory")
            make_step(self, batch)

        monkeypatch.setattr(Session, "make_step", broken)
        made = sweep(drawings, root, search)
        states = [status(job.directory) for job in done(made)]
        assert states.count("failed") == 1
        assert states.count("finished") == search.count - 1
        (choice,) = load_selected(root).choices
        assert choice.of == search.count
        assert choice.draw != 1
        (note,) = load_selected(root).runs.notes
        assert note == "Draws passed over in the selection: 1 failed."


def pruned(jobs: Sequence[Job]) -> list[Path]:
    return [job.directory for job in jobs if status(job.directory) == "pruned"]


@pytest.mark.slow
def test_a_search_prunes_what_lies_below_the_median(drawings: Path, tmp_path: Path) -> None:
    # By its name it has DomainBed's learning rates for MNIST, high enough to tell trials apart in a few steps.
    named = shutil.copytree(drawings, tmp_path / "rotated-mnist")
    search = SearchOptions(search="tpe", trials=9)

    def again() -> Sweep:
        long = settings(drawings, steps=12, eval_every=3)
        return sweep(named, tmp_path / "pruning", search, algorithms=["erm"], seeds=[1], settings=long)

    stopped = pruned(done(again()))
    assert stopped
    runs = load_selected(tmp_path / "pruning").runs
    assert sorted(runs.pruned) == sorted(stopped)
    assert runs.notes == [f"Draws passed over in the selection: {len(stopped)} pruned."]
    for directory in stopped:
        curve = json.loads((directory / "pruned.json").read_text())["evaluations"]
        assert [step for step, _ in curve] == [3, 6, 9][: len(curve)]
        assert not (directory / "state.pt").exists()
    before = found(tmp_path / "pruning")
    (jobs,) = again().rounds()
    assert len(jobs) == 9
    assert all(status(job.directory) in ("finished", "pruned") for job in jobs), "there is nothing left to do"
    assert found(tmp_path / "pruning") == before


def test_a_part_of_a_search_that_learns_is_of_the_same_search(drawings: Path, tmp_path: Path) -> None:
    rules = tuple(selection(name) for name in ("oracle", "training"))
    done(sweep(drawings, tmp_path, TPE, selections=rules))
    before = found(tmp_path)
    done(sweep(drawings, tmp_path, TPE, selections=rules[1:], whole=rules))
    assert found(tmp_path) == before
    done(sweep(drawings, tmp_path, TPE, selections=rules[1:]))
    assert len(list((tmp_path / "sweeps").iterdir())) == 2, "what is maximised is another search"


# --- what is wrong is said before anything is written ---


def test_what_is_fixed(drawings: Path) -> None:
    given = settings(drawings, lr=1e-3, rho=0.1, hyper={"coral.weight": 2})
    assert fixed_settings(given, ["dropout"]) == ["dropout", "lr", "batch_per_domain", "coral.weight", "rho"]
    with pytest.raises(SteppeError, match=r"fixed: learning_rate is none of the settings that are searched \(lr, "):
        fixed_settings(given, ["learning_rate"])


def test_values_replace_settings_and_hyper_parameters() -> None:
    config = small_config("emoji", algorithm="disam", rho=0.2)
    changed = with_values(config, {"lr": 0.5, "disam.lam": 0.3})
    assert (changed.lr, changed.rho, dict(changed.hyper)) == (0.5, 0.2, {"disam.lam": 0.3})


def test_nothing_is_written_for_a_request_that_cannot_be(drawings: Path, tmp_path: Path) -> None:
    two = open_dataset(drawings)
    two.domains = ("noto", "line")
    request = Request(["erm"], ["all"], [0], settings(drawings), selections=(selection("leave-one-out"),))
    with pytest.raises(SteppeError, match=r"has 2: nothing would be left to train on; choose another --selection"):
        Sweep(Store(tmp_path), two, request)
    with pytest.raises(SteppeError, match="unknown domain 'lime'"):
        sweep(drawings, tmp_path, TPE, held_out=["lime"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws must be at least 1"),
        ({"draws": 2, "search": "tpe"}, "draws are random: give the number of a tpe search by --trials"),
        ({"draws": 2, "trials": 2}, "the same number"),
        ({"trials": 2}, "add --search tpe"),
        ({"search": "tpe"}, "Add --trials 20"),
        ({"search": "random"}, "Add --draws 20"),
        ({"fixed": ("lr",)}, "there is no search: add --draws 20"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SteppeError, match=message):
        SearchOptions(**options)


def test_the_same_number_by_either_name() -> None:
    one, two = SearchOptions(draws=5), SearchOptions(search="random", trials=5)
    assert (one.kind, one.count) == (two.kind, two.count) == ("random", 5)
    assert (SearchOptions().kind, SearchOptions().count) == (None, 1)
