"""A model whose weights are divided among the processes (FSDP2), and its state in full.

Every process holds a part of each weight, of its gradient and of all that the optimizer keeps of it; what is whole
exists for a block of layers at a time, and while a model is evaluated or a checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steppe.errors import SteppeError
from steppe.shards import is_sharded
from steppe.training.checkpoints import tensors_in
from steppe.training.config import RunConfig
from steppe.training.machine import Machine
from steppe.training.recipes import parse
from steppe.training.team import Team

DIVIDED = "divided"
"""Where a state says which of its tensors, counted in their order, are to be divided."""


def check_parallel(machine: Machine, team: Team, config: RunConfig) -> None:
    """Raise ``SteppeError`` where weights are to be divided and cannot be."""
    if machine.parallel == "ddp":
        return
    if team.alone:
        raise SteppeError(
            "--parallel fsdp2 divides the weights of a run among processes, and this is one: start them with "
            "torchrun --nproc-per-node N -m steppe ..."
        )
    if any(word.name == "fishr" for word in parse(config.algorithm).words):
        raise SteppeError("fishr differentiates the head on its own and needs all of it: use --parallel ddp")


def divide(model: nn.Module, device: torch.device, processes: int) -> None:
    """``torch.distributed.fsdp.fully_shard`` every block of ``model``, and then what remains; in place.

    Blocks are what its outermost ``nn.Sequential`` and ``nn.ModuleList`` hold: residual blocks, transformer layers.

    Args:
        model: on ``device``, with the same weights in every process.
        device: the process's.
        processes: of the default group.

    Raises:
        SteppeError: this torch cannot divide it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model.to(memory_format=torch.contiguous_format)  # FSDP2 knows no other layout of weights
    mesh = init_device_mesh(device.type, (processes,))
    try:
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise SteppeError(f"torch cannot divide this model ({error}): use --parallel ddp") from error


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from (block for block in child if next(block.parameters(), None) is not None)
        else:
            yield from _blocks(child)


def whole_state(state: Any) -> Any:
    """Nested containers with every divided tensor in full, on the CPU. Every process must call this."""
    return _mapped(state, lambda tensor: tensor.full_tensor().cpu() if is_sharded(tensor) else tensor)


def saved_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`whole_state`, which also says what was divided. Every process must call this."""
    divided = [number for number, tensor in enumerate(tensors_in(state)) if is_sharded(tensor)]
    return {**whole_state(state), DIVIDED: divided}


def divided_state(state: Mapping[str, Any], device: torch.device, processes: int) -> dict[str, Any]:
    """What :func:`saved_state` was given: this process's parts of it. Every process must call this."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(device.type, (processes,))
    numbers = iter(range(sum(1 for _ in tensors_in(state))))
    divided = frozenset(state[DIVIDED])

    def part(tensor: Tensor) -> Tensor:
        if next(numbers) not in divided:
            return tensor
        return distribute_tensor(tensor.to(device), mesh, [Shard(0)])

    found: dict[str, Any] = _mapped(state, part)
    return found


def _mapped(state: Any, change: Any) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, Mapping):
        return {name: _mapped(value, change) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_mapped(value, change) for value in state)
    return state
