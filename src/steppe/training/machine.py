"""Where a run is computed: what does not belong to its identity."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from steppe import __version__
from steppe.errors import SteppeError, unknown_name
from steppe.training.config import unset

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

DEVICES, CACHE, AUGMENT = ("auto", "cpu", "cuda"), ("auto", "on", "off"), ("auto", "host", "device")
PARALLEL = ("ddp", "fsdp2")
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How the machine is used. The same run on another machine keeps its id.

    Raises:
        SteppeError: a value is outside its range.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    workers: Annotated[int | None, unset("0 on a CPU, up to 8 with a GPU")] = None
    """Processes that load pictures."""
    threads: Annotated[int | None, unset("torch's choice")] = None
    """Threads of torch on the CPU."""
    sharpness: Annotated[int | None, unset("not measured")] = None
    """At each evaluation measure the variance of the gradients of so many batches of the held-out domain."""
    checkpoint_every: Annotated[int | None, unset("at each evaluation")] = None
    """Steps between the checkpoints from which a stopped run continues."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Keep decoded pictures on disk: auto, where they are large and all fit; on, as many as fit; off."""
    cache_gb: Annotated[float | None, unset("half of the free disk, at most 64")] = None
    """Gigabytes of disk for a data set's decoded pictures."""
    cache_memory_gb: Annotated[float | None, unset("auto: half of the memory; on: all")] = None
    """Gigabytes of memory that they may fill; a larger cache would be read from the disk again and again."""
    augment: Literal["auto", "host", "device"] = "auto"
    """Where training pictures are augmented: host, 8 bits, as DomainBed does; device, float32; auto, on a GPU if there
    is one."""
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """How processes that torchrun has started share a run's weights: ddp, each has all; fsdp2, each a part."""

    def __post_init__(self) -> None:
        if self.sharpness is not None and self.sharpness < 2:
            raise SteppeError(f"sharpness is a variance over at least 2 batches, got {self.sharpness}")
        if self.workers is not None and self.workers < 0:
            raise SteppeError(f"workers must be at least 0, got {self.workers}")
        for name in ("threads", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SteppeError(f"{name} must be at least 1, got {value}")
        for name in ("cache_gb", "cache_memory_gb"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise SteppeError(f"{name} must be at least 0, got {value}")
        for name, known in (("device", DEVICES), ("cache", CACHE), ("augment", AUGMENT), ("parallel", PARALLEL)):
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)

    def loader_workers(self, device: torch.device) -> int:
        """The number of loading processes beside this device."""
        if self.workers is not None:
            return self.workers
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this machine that train together
        return 0 if device.type == "cpu" else min(8, max(1, (os.cpu_count() or 1) // beside))

    def augments_on(self, device: torch.device) -> Literal["host", "device"]:
        """Where the training pictures of a run on this device are augmented."""
        if self.augment == "auto":
            return "device" if device.type == "cuda" else "host"
        return self.augment


def accelerator(machine: Machine, precision: str) -> Accelerator:
    """A fresh ``Accelerator``.

    Raises:
        SteppeError: there is no GPU where one was asked for, or the device cannot do this precision.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    cpu = machine.device == "cpu" or (machine.device == "auto" and not torch.cuda.is_available())
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise SteppeError("no CUDA device is available here: use --device auto or --device cpu")
    if cpu and precision == "fp16":
        raise SteppeError("precision fp16 needs a GPU: use --precision bf16 or --precision no")
    if PartialState._shared_state.get("num_processes", 1) == 1:
        # accelerate keeps device and precision of a process's first Accelerator for good; a sweep may change both.
        AcceleratorState._reset_state(reset_partial_state=True)
    else:
        AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=precision)


@contextmanager
def reproducible(machine: Machine, device: torch.device) -> Iterator[None]:
    """The same seed gives the same bits on the same machine, inside; torch's settings are put back afterwards."""
    import torch

    deterministic: Any = torch.utils.deterministic
    threads = torch.get_num_threads()
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, fill = torch.backends.cudnn.benchmark, deterministic.fill_uninitialized_memory
    try:
        if machine.threads is not None:
            torch.set_num_threads(machine.threads)
        if device.type == "cuda":
            # cuBLAS reads this when it makes its first handle.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
            deterministic.fill_uninitialized_memory = False  # finds bugs; costs time
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        deterministic.fill_uninitialized_memory = fill


def describe(device: torch.device) -> str:
    """The device in words: ``"cuda: NVIDIA H200"``, ``"cpu: <model>"``."""
    import torch

    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {_processor()}"


def versions() -> dict[str, str]:
    """Package -> installed version, with Python's own and the operating system's."""
    found = {"steppe": __version__}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # put on the path without being installed
            found[name] = importlib.metadata.version(name)
    return {**found, "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
