"""How the runs of a sweep are executed: the options, and the executor that they ask for. Light until one is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from steppe.errors import SteppeError
from steppe.training.config import unset
from steppe.training.machine import Machine
from steppe.training.team import launched

if TYPE_CHECKING:
    from steppe.benchmark.executor import Executor
    from steppe.data import DomainDataset
    from steppe.training.progress import Report

_TAKEN_BY = {
    "jobs": ("local", "ray"),
    "cores_per_run": ("local", "ray"),
    "gpus_per_run": ("local", "ray"),
    "memory_per_run": ("local", "ray"),
    "address": ("ray",),
    "exchange": ("ray",),
}
"""Options that only some executors know what to do with."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where the runs of a sweep are trained. Their numbers are the same; only the last bits depend on a run's threads.

    Raises:
        SteppeError: a value is outside its range, or an option that the executor does not take was given.
    """

    executor: Literal["inprocess", "local", "ray"] = "inprocess"
    """inprocess: one run after the other. local: several at a time, in processes of this machine. ray: on a cluster."""
    jobs: Annotated[int | None, unset("local: one per GPU, or as many as the cores allow; ray: as many as fit")] = None
    """Runs at a time (local, ray). Small networks gain most from many runs with a core each."""
    cores_per_run: Annotated[int | None, unset("local: the cores divided by --jobs; ray: --threads, or 1")] = None
    """Cores of each run, and its threads unless --threads says otherwise."""
    gpus_per_run: Annotated[float | None, unset("1 where there are GPUs")] = None
    """Part of a GPU for each run: with 0.5 two runs share one."""
    memory_per_run: Annotated[str | None, unset("local: measured; ray: none is reserved")] = None
    """Memory of each run, such as 6GB: a run waits until there is room for it."""
    retries: int = 2
    """How often a run goes on from its checkpoint when its worker was killed, ran out of memory or lost its node."""
    retry_failed: bool = False
    """Try runs again that failed before (a loss that is not finite, an error, too many lost workers)."""
    address: Annotated[str | None, unset("$RAY_ADDRESS, or a Ray of its own on this machine")] = None
    """ray: host:port of the cluster's head, or auto on one of its nodes (ray start --head; docs/running.md)."""
    exchange: Annotated[str | None, unset("all nodes see the folder --out")] = None
    """ray: object store that runs travel through where nodes share no disk: s3://bucket/path, file:///mnt/path."""

    def __post_init__(self) -> None:
        if self.executor != "inprocess" and launched() > 1:
            raise SteppeError(
                f"{launched()} processes were launched to train each run together, and --executor {self.executor} "
                "starts its own for several runs at a time: leave one of the two out"
            )
        for name, executors in _TAKEN_BY.items():
            if getattr(self, name) is not None and self.executor not in executors:
                option = "--" + name.replace("_", "-")
                wanted = " or ".join(f"--executor {one}" for one in executors)
                raise SteppeError(f"{option} is for {wanted}, and the executor is {self.executor}: add {wanted}")
        for name in ("jobs", "cores_per_run"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SteppeError(f"{name} must be at least 1, got {value}")
        if self.gpus_per_run is not None and not 0 < self.gpus_per_run <= 1:
            raise SteppeError(
                f"gpus_per_run must be larger than 0 and at most 1, as a run trains on one device; got "
                f"{self.gpus_per_run:g} (to use no GPU: --device cpu)"
            )
        if self.retries < 0:
            raise SteppeError(f"retries must be at least 0, got {self.retries}")
        if self.memory_per_run is not None:
            from steppe.benchmark.executors.budget import parse_memory

            parse_memory(self.memory_per_run)

    @property
    def memory(self) -> int | None:
        """``memory_per_run`` in bytes."""
        if self.memory_per_run is None:
            return None
        from steppe.benchmark.executors.budget import parse_memory

        return parse_memory(self.memory_per_run)


def make_executor(
    execution: Execution, dataset: DomainDataset, machine: Machine, report: Report, command: str
) -> Executor:
    """The executor that was asked for; a context manager, which ends what it has started.

    Args:
        execution: the options.
        dataset: the opened data set, whose pictures have been checked.
        machine: device, threads and loading processes of the runs.
        report: what to show meanwhile; a :class:`~steppe.training.progress.Display` has a bar for each worker.
        command: the command line to put down in the files of a run.

    Raises:
        SteppeError: the machine or the cluster has not what is asked for, or there is no such cluster.
    """
    match execution.executor:
        case "inprocess":
            from steppe.benchmark.executor import InProcess

            return InProcess(dataset, machine, report, command)
        case "local":
            from steppe.benchmark.executors.local import LocalProcesses

            return LocalProcesses(
                dataset,
                machine,
                report,
                command,
                jobs=execution.jobs,
                cores_per_run=execution.cores_per_run,
                gpus_per_run=execution.gpus_per_run,
                memory_per_run=execution.memory,
                retries=execution.retries,
            )
        case "ray":
            from steppe.benchmark.executors.cluster import RayExecutor

            return RayExecutor(
                dataset,
                machine,
                report,
                command,
                address=execution.address,
                jobs=execution.jobs,
                cores_per_run=execution.cores_per_run,
                gpus_per_run=execution.gpus_per_run,
                memory_per_run=execution.memory,
                retries=execution.retries,
                exchange=execution.exchange,
            )
