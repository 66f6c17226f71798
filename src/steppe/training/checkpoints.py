"""``state.pt``: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from steppe.errors import SteppeError
from steppe.shards import local
from steppe.training.files import write_atomically

VERSION = 3


class CorruptCheckpointError(SteppeError):
    """A checkpoint that is there but cannot be trusted."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used ({reason})")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically. ``state`` holds tensors and plain containers only.

    Raises:
        OutputError: the file cannot be written; the previous checkpoint is still there.
    """

    def write(file: BinaryIO) -> None:
        try:
            torch.save({"version": VERSION, **state}, file)
        except RuntimeError as error:
            # A failing write surfaces in torch as a RuntimeError raised while the OSError was being handled.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise

    write_atomically(path, write)


def load_checkpoint(path: Path, *, run: str, metrics: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or ``None`` where there is none.

    Every byte is checked against the checksums in the file before it is used.

    Args:
        path: the checkpoint.
        run: the id that the run must have.
        metrics: the metrics file, which must reach at least as far as the checkpoint says.

    Raises:
        CorruptCheckpointError: it is damaged, belongs to another run or version, or the metrics file is shorter
            than it was.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CorruptCheckpointError(path, f"the checksum of {damaged} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (CorruptCheckpointError, MemoryError):
        raise
    except Exception as error:
        # A damaged file can fail in any way: the zip directory, the unpickler, the storages.
        first = str(error).strip().partition("\n")[0]
        raise CorruptCheckpointError(path, f"{type(error).__name__}: {first}") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise CorruptCheckpointError(path, "it was written by another version of steppe")
    if state.get("id") != run:
        raise CorruptCheckpointError(path, f"it belongs to the run {state.get('id')}, not to {run}")
    length = metrics.stat().st_size if metrics.exists() else 0
    if length < state["metrics_bytes"]:
        raise CorruptCheckpointError(path, f"{metrics.name} has {length} bytes of the {state['metrics_bytes']} it had")
    return state


def random_state() -> dict[str, Any]:
    """The states of the global generators of torch, CUDA, NumPy and Python, as tensors and plain containers."""
    cuda_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - the global generator
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda_in_use else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators back to what :func:`random_state` saw."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def all_finite(state: Any) -> bool:
    """Whether no floating-point tensor in nested containers holds NaN or infinity; one synchronisation a device.

    Of divided tensors this process looks at its own part.
    """
    checks: dict[torch.device, list[Tensor]] = {}
    for tensor in map(local, tensors_in(state)):
        if tensor.is_floating_point() and tensor.numel():
            checks.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
    return all(bool(torch.stack(found).all()) for found in checks.values())


def tensors_in(state: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, in their order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors_in(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from tensors_in(value)
