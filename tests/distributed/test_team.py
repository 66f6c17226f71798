"""One run in several processes: the numbers of one process, and what happens to all where something happens to one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from ranks import launch
from team_runs import (
    Parallel,
    emoji_config,
    held,
    initial,
    result,
    train,
    train_and_lose,
    train_disturbed,
    weights,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from steppe.benchmark.execution import Execution
from steppe.errors import SteppeError
from steppe.training import NonFiniteLossError
from steppe.training.checkpoints import CorruptCheckpointError
from steppe.training.joining import Joint, JointBatchNorm
from steppe.training.team import Team, is_agreed

pytestmark = pytest.mark.slow

FROZEN = {
    "erm": {},
    "disam+sagm": {},
    "coral+disam": {"coral.weight": 1.0},
    "tram": {},
    "fishr": {"fishr.anneal_steps": 0},
    "mixup": {},
    "mixup+disam": {"ascent_fraction": 0.7},
    "lookahead": {"lookahead.k": 2, "lookahead.alpha": 0.5},
    "swad": {},
    "trpo+disam": {},
    "sam": {"m": 3},
}
TRAINED = ("erm", "disam+sagm", "tram", "swad")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_give_the_numbers_of_one(parallel: Parallel, tmp_path: Path) -> None:
    configs = {name: emoji_config(name, hyper=hyper, frozen_batch_norm=True) for name, hyper in FROZEN.items()}
    # Batch normalisation of a network with random weights multiplies rounding errors: small steps.
    configs |= {f"{name}, trained": emoji_config(name, lr=1e-3) for name in TRAINED}
    cases = [(config, name) for name, config in configs.items() if (parallel, name) != ("fsdp2", "fishr")]
    train(0, tmp_path / "one", cases)
    launch(train, 2, tmp_path / "meeting", tmp_path / "two", cases, parallel)
    for config, name in cases:
        one, two = (tmp_path / where / name for where in ("one", "two"))
        first, second = result(one), result(two)
        assert (first["processes"], second["processes"], second["parallel"]) == (1, 2, parallel)
        assert first["id"] == second["id"]
        moved = float((weights(one) - initial(config)).norm())
        apart = float((weights(one) - weights(two)).norm())
        assert moved > 0
        assert apart < 2e-3 * moved, f"{name}: {apart:g} apart after moving {moved:g}"
        for domain, losses in first["loss"].items():
            assert second["loss"][domain] == pytest.approx(losses, rel=1e-4), name


def table(sweep: Path) -> dict[str, Any]:
    found = [json.loads(path.read_text()) for path in sweep.glob("emoji/*/line/*/result.json")]
    return {one["algorithm"]: (one["id"], one["accuracy"], one["selected_step"]) for one in found}


def test_torchrun_gives_the_table_of_one_process(tmp_path: Path) -> None:
    backbone = ("--backbone", "test_resnet", "--no-pretrained", "--image-size", "32", "--batch-per-domain", "3")
    sweep = ("bench", "emoji", "--held-out", "line", "--algorithms", "erm", "coral+disam", "--seeds", "1")
    options = [*sweep, *backbone, "--steps", "4", "--eval-every", "4", "--sharpness", "2", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone = subprocess.run(
        [sys.executable, "-m", "steppe", *options, "--out", tmp_path / "one"],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    both = subprocess.run(
        [*torchrun, "-m", "steppe", *options, "--out", tmp_path / "two"], capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    assert both.returncode == 0, both.stderr
    assert table(tmp_path / "one") == table(tmp_path / "two")
    assert len(table(tmp_path / "two")) == 2
    # One process talks: each run's outcome is told once.
    assert both.stdout.count("in domain\n") == alone.stdout.count("in domain\n") == 2


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("signalled", "algorithm"), [(0, "trpo+disam+swad"), (1, "tram-ema+lookahead")])
def test_a_signal_to_one_stops_both_which_any_number_resumes(
    signalled: int, algorithm: str, parallel: Parallel, tmp_path: Path
) -> None:
    hyper = {"lookahead.k": 2} if "lookahead" in algorithm else {}
    case = (emoji_config(algorithm, hyper=hyper, frozen_batch_norm=True), "run")
    told = launch(train_disturbed, 2, tmp_path / "a", tmp_path / "disturbed", case, signalled, 4, parallel)
    assert told == ["interrupted by 15"] * 2
    assert (tmp_path / "disturbed" / "run" / "state.pt").exists()
    launch(train, 2, tmp_path / "b", tmp_path / "undisturbed", [case], parallel)
    processes = 2 if signalled else 1
    if processes == 2:
        launch(train, 2, tmp_path / "c", tmp_path / "disturbed", [case], parallel)
    else:
        train(0, tmp_path / "disturbed", [case])
    found, expected = tmp_path / "disturbed" / "run", tmp_path / "undisturbed" / "run"
    assert result(found)["processes"] == processes
    if processes == 2:
        assert torch.equal(weights(found), weights(expected))
        assert result(found)["loss"] == result(expected)["loss"]
    else:
        assert torch.allclose(weights(found), weights(expected), rtol=0, atol=1e-6)


def test_each_process_of_a_divided_run_holds_its_part(tmp_path: Path) -> None:
    for part, whole in launch(held, 2, tmp_path / "a", tmp_path / "runs", emoji_config("erm")):
        assert 0.45 * whole < part < 0.55 * whole


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match="torchrun"):
        train(0, tmp_path, [(emoji_config("erm"), "alone")], "fsdp2")
    with pytest.raises(AssertionError, match="fishr differentiates the head"):
        launch(train, 2, tmp_path / "a", tmp_path, [(emoji_config("fishr+disam"), "run")], "fsdp2")
    case = (emoji_config("erm"), "replicated")
    launch(train_disturbed, 2, tmp_path / "b", tmp_path, case, 0, 4)
    with pytest.raises(AssertionError, match="go on with --parallel ddp"):
        launch(train, 2, tmp_path / "c", tmp_path, [case], "fsdp2")


def test_a_process_that_dies_ends_the_other_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(AssertionError, match="exit codes"):
        launch(train_and_lose, 2, tmp_path / "a", tmp_path / "runs", (emoji_config("erm"), "run"), 1, 2)
    assert "RuntimeError" in (tmp_path / "runs" / "met by 0").read_text()
    assert not (tmp_path / "runs" / "run" / "result.json").exists()


def errors(rank: int, folder: Path) -> list[Any]:
    team = Team(rank, 2)
    found: list[Any] = [team.on_main(lambda: ("told by", rank)), team.together(lambda: rank), team.largest(3 * rank)]

    def fails(error: BaseException, where: int) -> Any:
        def act() -> None:
            if rank == where:
                raise error

        try:
            (team.on_main if where == 0 else team.together)(act)  # type: ignore[operator]
        except BaseException as met:
            return type(met).__name__, str(met), vars(met), is_agreed(met)

    found.append(fails(NonFiniteLossError("broke", step=3, domains=("a",), lr=0.1), 0))
    found.append(fails(CorruptCheckpointError(folder / "state.pt", "cut"), 1))
    found.append(fails(KeyboardInterrupt(), 1))
    return found


def test_what_one_process_finds_or_raises_reaches_all(tmp_path: Path) -> None:
    first, second = launch(errors, 2, tmp_path / "a", tmp_path)
    assert first == second
    assert first[:3] == [("told by", 0), [0, 1], 3]
    assert first[3][0] == "NonFiniteLossError"
    assert first[3][1] == "broke"
    assert (first[3][2]["step"], first[3][2]["domains"], first[3][3]) == (3, ("a",), True)
    assert "state.pt cannot be used (cut)" in first[4][1]
    assert first[5][0] == "KeyboardInterrupt"


def network() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).double().train()
    return model, torch.randn(9, 3, 32, 32).double(), torch.randint(0, 5, (9,))


def normalised(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model, x, y = network()
    joint = Joint(Team(rank, 2), torch.arange(9))
    replica = DistributedDataParallel(model)
    with JointBatchNorm():
        logits = joint.gather(replica(x[rank::2]))
    cross_entropy(logits, y).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model.state_dict()


def test_batch_normalisation_sees_the_rows_of_all(tmp_path: Path) -> None:
    model, x, y = network()
    cross_entropy(model(x), y).backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for gradients, state in launch(normalised, 2, tmp_path / "a"):
        for name, parameter in model.named_parameters():
            assert torch.allclose(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12 * largest), name
        for name, value in model.state_dict().items():
            assert torch.allclose(state[name], value, rtol=1e-12), name


def test_a_pass_without_pictures_for_a_process_is_refused() -> None:
    with pytest.raises(SteppeError, match="without any"):
        Joint(Team(0, 4), torch.arange(3))


def test_launched_processes_start_none_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SteppeError, match="--executor local"):
        Execution(executor="local")
    Execution()
