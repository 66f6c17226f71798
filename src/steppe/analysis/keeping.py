"""Borrowing a model: whatever is done to it inside, it comes back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steppe.persistent import repeats
from steppe.randomness import undisturbed
from steppe.replicas import unwrapped
from steppe.running_statistics import RunningStatistics
from steppe.shards import is_sharded


@contextmanager
def kept(model: nn.Module, *, weights: bool = False) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Inside, the model is in evaluation mode and no gradient is recorded.

    At the end each module's mode, the buffers and torch's global generators are as they were. A module may have put a
    new tensor in the place of a buffer: persistent ones come back; the others are caches of the module's own, which it
    keeps (their content comes back where they are still the same tensor).

    Args:
        model: as it is called.
        weights: bring the parameters back too.

    Yields:
        The copies of the parameters; none without ``weights``.
    """
    modes = {module: module.training for module in model.modules()}
    caches = [
        (module, name, buffer, buffer.clone())
        for module in modes
        for name, buffer in module._buffers.items()
        if name in module._non_persistent_buffers_set and buffer is not None and not repeats(buffer)
    ]
    copies = {parameter: parameter.detach().clone() for parameter in model.parameters()} if weights else {}
    with torch.no_grad(), undisturbed(devices(model)), RunningStatistics(model).preserved():
        try:
            model.eval()
            yield copies
        finally:
            for module, mode in modes.items():
                module.training = mode
            for module, name, buffer, content in caches:
                if module._buffers.get(name) is buffer and buffer.shape == content.shape:
                    buffer.copy_(content)
            for parameter, copy in copies.items():
                parameter.copy_(copy)
            written()


def written() -> None:
    """To be called after writing to weights: autocast would go on with the casts of what they were."""
    torch.clear_autocast_cache()


def devices(model: nn.Module) -> set[torch.device]:
    """Where the model's parameters are."""
    return {parameter.device for parameter in model.parameters()}


def whole_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name, without the prefixes of ``torch.compile``'s and ``DistributedDataParallel``'s wrappers.

    Raises:
        ValueError: they are sharded or complex, or there is none.
    """
    parameters = dict(bare(model).named_parameters())
    if not parameters:
        raise ValueError("the model has no parameters")
    for name, parameter in parameters.items():
        refuse_shards(parameter, name)
        if parameter.is_complex():
            raise ValueError(f"{name!r} is complex: hold it as real pairs (torch.view_as_real)")
    return parameters


def refuse_shards(tensor: Tensor, name: str) -> None:
    """Raise ``ValueError`` for a ``DTensor``: the instruments compute with whole tensors, each rank on its own."""
    if is_sharded(tensor):
        raise ValueError(
            f"{name!r} is sharded: gather the weights first (get_model_state_dict of "
            "torch.distributed.checkpoint.state_dict with full_state_dict=True) and load them into an unsharded model"
        )


def bare(model: nn.Module) -> nn.Module:
    """The module inside the wrappers, whose names are the state dict's."""
    inner = unwrapped(model)
    return model if inner is None else inner
