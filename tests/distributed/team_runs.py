"""What the processes of a team do in the tests: small runs on EmojiStyles, and what may happen to them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file
from small_runs import small_config
from torch import Tensor

from steppe.models import build_classifier
from steppe.shards import local
from steppe.training import Machine, RunConfig, Trainer
from steppe.training.interruption import Interrupted
from steppe.training.session import Session

Case = tuple[RunConfig, str]
Parallel = Literal["ddp", "fsdp2"]


def emoji_config(algorithm: str, **changes: Any) -> RunConfig:
    """Six steps of nine pictures, so that two processes have five and four."""
    settings: dict[str, Any] = {"steps": 6, "eval_every": 6, "optimizer": "sgd", "lr": 0.01}
    return small_config("emoji", algorithm=algorithm, **{**settings, **changes})


def train(rank: int, root: Path, cases: Sequence[Case], parallel: Parallel = "ddp") -> None:
    """Each run to its end, in a folder of its own."""
    for config, name in cases:
        Trainer(config, out=root / name, machine=Machine(device="cpu", parallel=parallel), command="test").fit()


def train_disturbed(rank: int, root: Path, case: Case, signalled: int, step: int, parallel: Parallel = "ddp") -> str:
    """A run in which one process gets SIGTERM before a step; what came out of it."""
    _before(step, lambda _: os.kill(os.getpid(), signal.SIGTERM) if rank == signalled else None)
    try:
        train(rank, root, [case], parallel)
    except Interrupted as error:
        return f"interrupted by {error.signum}"
    return "finished"


def train_and_lose(rank: int, root: Path, case: Case, lost: int, step: int) -> None:
    """A run in which one process is killed before a step; the others write down what they met."""
    _before(step, lambda _: os._exit(0) if rank == lost else None)
    try:
        train(rank, root, [case])
    except BaseException as error:
        (root / f"met by {rank}").write_text(f"{type(error).__name__}: {error}")
        raise


def _before(step: int, act: Callable[[Session], None]) -> None:
    make_step = Session.make_step

    def disturbed(self: Session, batch: Any) -> None:
        if self.step == step:
            act(self)
        make_step(self, batch)

    Session.make_step = disturbed  # type: ignore[method-assign]


def held(rank: int, root: Path, config: RunConfig) -> tuple[int, int]:
    """How many numbers of the weights a process holds after two steps of a divided run, and of how many."""
    found: list[tuple[int, int]] = []

    def count(session: Session) -> None:
        found.append((sum(local(p).numel() for p in session.model.parameters()), session.parameters))

    _before(2, count)
    train(rank, root, [(config, "run")], "fsdp2")
    return found[0]


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())  # type: ignore[no-any-return]


def weights(run: Path) -> Tensor:
    return _flat(load_file(run / "model.safetensors"))


def initial(config: RunConfig) -> Tensor:
    """The weights that a run starts from."""
    set_seed(config.seed)
    model = build_classifier(
        config.backbone, 10, pretrained=False, frozen_batch_norm=config.frozen_batch_norm, image_size=config.image_size
    )
    return _flat(model.state_dict())


def _flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(state.items())])
