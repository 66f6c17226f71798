"""What runs in the processes that the tests kill."""

from __future__ import annotations

import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from steppe.training import Machine, RunConfig, Trainer
from steppe.training.files import OutputError


def train(config: RunConfig, out: Path, checkpoint_every: int | None = None) -> None:
    """Train to the end."""
    torch.set_num_threads(1)
    Trainer(config, out=out, machine=Machine(device="cpu", checkpoint_every=checkpoint_every), command="test").fit()


def train_until_write(config: RunConfig, out: Path, count: int) -> None:
    """Train, and be killed in the midst of the ``count``-th time that a file is synced or renamed."""
    left = count

    def dying(call: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return wrapped

    os.fsync = dying(os.fsync)
    Path.replace = dying(Path.replace)  # type: ignore[method-assign]
    train(config, out)


def train_with_file_limit(config: RunConfig, out: Path, limit: int, answer: Connection) -> None:
    """Train where no file can grow beyond ``limit`` bytes; send the message of the OutputError that ends it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    _send_output_error(config, out, answer)


def train_as_nobody(config: RunConfig, out: Path, answer: Connection) -> None:
    """Train without the rights of the superuser; send the message of the OutputError that ends it."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    _send_output_error(config, out, answer)


def _send_output_error(config: RunConfig, out: Path, answer: Connection) -> None:
    try:
        train(config, out)
    except OutputError as error:
        answer.send(str(error))
    else:
        answer.send("finished")
