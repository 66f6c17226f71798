"""The processes that train one run together: started by ``torchrun`` or ``accelerate launch``, one a device.

What concerns files, prints or decisions is done by the first process, :attr:`Team.main`, and what came of it, a result
or an exception, reaches all of them: so they raise together, and none waits for one that has given up.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from steppe.errors import SteppeError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_AGREED = "_steppe_agreed"


@dataclass(frozen=True)
class Team:
    """The processes of a run.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes the files and talks to the user."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def on_main(self, act: Callable[[], T]) -> T:
        """What ``act()`` returns in the first process, in all of them; the others do not call it. Every process must
        call this.

        Raises:
            BaseException: what ``act`` raised, in every process.
        """
        if self.alone:
            return act()
        done = _attempt(act) if self.main else None
        found = cast(_Attempt, self._from_main(None if done is None else done.sent()))
        return cast(T, (done or found).outcome())

    def together(self, act: Callable[[], T]) -> list[T]:
        """What ``act()`` returns in each process, in the order of ranks. Every process must call this.

        Raises:
            BaseException: ``act`` raised in some process: its own error where it is one of these, else the first's.
        """
        if self.alone:
            return [act()]
        import torch.distributed as dist

        mine = _attempt(act)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine.sent())
        mine.outcome()
        return [cast(_Attempt, attempt).outcome() for attempt in found]

    def largest(self, value: int) -> int:
        """The largest of the processes' values. Every process must call this."""
        if self.alone:
            return value
        import torch
        import torch.distributed as dist

        held = torch.tensor([value])
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return int(held)

    def agree_on_randomness(self) -> None:
        """torch's generator of the CPU goes on from where the first process's is. Every process must call this."""
        if self.alone:
            return
        import torch
        import torch.distributed as dist

        state = torch.get_rng_state()
        dist.broadcast(state, 0)
        torch.set_rng_state(state)

    def gather_rows(self, rows: Tensor, counts: list[int], *, differentiable: bool = True) -> Tensor:
        """The rows of all processes, the first one's first. Every process must call this.

        The gradient that comes back belongs to a loss that every process computes in full, and whose gradients the
        processes will average, as ``DistributedDataParallel`` does. So a process takes its own rows of it times the
        number of processes, and nothing has to be sent.

        Args:
            rows: ``[counts[rank], ...]``.
            counts: how many rows each process has.
            differentiable: whether gradients are to flow.
        """
        if self.alone:
            return rows
        from steppe.training.joining import gathered

        return gathered(rows, counts, self.rank, differentiable=differentiable)

    def tell(self, what: Any) -> Any:
        """What the first process has to say, picklable; the others give ``None``. Every process must call this."""
        return what if self.alone else self._from_main(what)

    def _from_main(self, value: Any) -> Any:
        import torch.distributed as dist

        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


@dataclass(frozen=True)
class _Attempt:
    """What came of a call."""

    value: Any = None
    error: BaseException | None = None
    told: tuple[type[BaseException], tuple[Any, ...], dict[str, Any]] | None = None

    def sent(self) -> _Attempt:
        """This, as it travels: an error by its class, message and attributes, whatever its constructor takes."""
        if self.error is None:
            return self
        kind: type[BaseException] = type(self.error)
        parts = (kind, self.error.args, dict(vars(self.error)))
        try:
            pickle.dumps(parts)
        except Exception:
            message = f"{kind.__name__}: {self.error}"
            parts = (SteppeError if isinstance(self.error, SteppeError) else RuntimeError, (message,), {})
        return _Attempt(told=parts)

    def outcome(self) -> Any:
        """The value; or the error is raised."""
        error = self.error
        if error is None and self.told is not None:
            kind, arguments, attributes = self.told
            error = kind.__new__(kind, *arguments)
            error.args = arguments
            vars(error).update(attributes)
        if error is None:
            return self.value
        raise agreed(error)


def _attempt(act: Callable[[], Any]) -> _Attempt:
    try:
        return _Attempt(act())
    except BaseException as error:
        return _Attempt(error=error)


def agreed(error: E) -> E:
    """An error that every process of the team is about to raise: marked as such."""
    setattr(error, _AGREED, True)
    return error


def is_agreed(error: BaseException) -> bool:
    """Whether all processes of the team raise this error together, so that none of them is left waiting."""
    return bool(getattr(error, _AGREED, False))


def launched() -> int:
    """How many processes ``torchrun`` or ``accelerate launch`` has started beside this one and including it. Light."""
    try:
        return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1
    except (KeyError, ValueError):
        return 1


def leads() -> bool:
    """Whether this is the first of the processes that were launched, or the only one. Light."""
    return launched() == 1 or os.environ["RANK"] == "0"


def team_of(device: str = "auto") -> Team:
    """The team that this process is in: of the default process group, which is made where processes were launched
    together and have none.

    Args:
        device: of :class:`~steppe.training.machine.Machine`: with GPUs their tensors travel by NCCL.

    Raises:
        SteppeError: the processes do not find each other, or there is no GPU for each.
    """
    if launched() == 1 and "torch" not in sys.modules:
        return Team()
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        return Team()
    if not dist.is_initialized():
        if launched() == 1:
            return Team()
        cuda = device != "cpu" and torch.cuda.is_available()
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if cuda and place >= torch.cuda.device_count():
            raise SteppeError(
                f"there are more processes than the {torch.cuda.device_count()} GPUs of this machine: launch one for "
                "each, or use --device cpu"
            )
        if cuda:
            torch.cuda.set_device(place)
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        except (RuntimeError, ValueError) as error:
            raise SteppeError(
                f"{launched()} processes were launched and do not find each other ({error}): start them with "
                "torchrun --nproc-per-node N -m steppe ..., or accelerate launch"
            ) from error
    return Team(dist.get_rank(), dist.get_world_size())


def disband() -> None:
    """End the process group, at the end of the program, once every process has come here."""
    import gc

    if launched() == 1 or "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()  # a DDP wrapper ends before the group that it talks by
        with suppress(RuntimeError):  # one that is gone early has said why
            dist.barrier()  # else it would look like a fault to those that still talk to it
        dist.destroy_process_group()
