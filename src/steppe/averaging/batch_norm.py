"""Running statistics of batch normalisation for weights that no forward pass of training has seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steppe.averaging.average import reshard
from steppe.errors import SteppeError
from steppe.replicas import Replicas, unwrapped
from steppe.shards import is_sharded
from steppe.trust.references import arguments
from steppe.vectors import HALF

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Held = tuple[Any, str, Tensor]
"""A tensor, and where it was: a module's dict, and the name in it."""


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Any], *, limit: int | None = None, progress: bool = False
) -> int:
    r"""Replace BatchNorm's running statistics by those of the present weights on given batches::

        model.load_state_dict(average.finish())
        reestimate_batch_norm(model, balanced_batches, limit=500)

    With b batches, and in each layer the mean μ_i and the unbiased variance σ_i² of the i-th,

        running_mean = (1/b) Σ μ_i        running_var = (1/b) Σ σ_i²        (in float32 or better)

    Every batch weighs the same, whatever its size: for domains in balance, give batches with as much of each. These
    layers normalise by the batch meanwhile, as in training. All other modules are in evaluation mode, so nothing is
    drawn at random, and the same batches give the same statistics. No gradient is computed.

    Compared with :func:`torch.optim.swa_utils.update_bn`, which gives the same bits where all this plays no part:

    - Layers that do not train keep their statistics: those that are in evaluation mode while the model is in training
      mode; if the model is not, those that ``model.train()`` leaves in evaluation mode (frozen ones). So do layers that
      no batch reaches.
    - No dropout, which shifts the variances of what comes after it.
    - Half-precision statistics are summed in float32. As they are, a running mean would stop moving after some hundred
      batches.
    - Statistics, modes and momenta are put back where anything is raised; modes and momenta in any case.
    - On several ranks (DistributedDataParallel, FSDP2) the mean is over the batches of all ranks, with the same result
      on each; ``update_bn`` through DistributedDataParallel would have those of rank 0. With FSDP2 and with
      SyncBatchNorm, ranks must have as many batches as each other.

    Args:
        model: the model as it is trained, wrapped or not.
        batches: of inputs x, of tuples or lists whose first element is x, or of dicts of keyword arguments; x is what
            the model is called with, and where it is a tuple or dict itself, all of it is. Moved to the model's device.
        limit: use at most so many, and draw no more.
        progress: show a bar on standard error, where ``rich`` is installed.

    Returns:
        How many batches this rank used. 0 where no layer has statistics to estimate; ``batches`` is then not touched.

    Raises:
        SteppeError: there are no batches.
        ValueError: ``limit`` is below 1.
    """
    if limit is not None and not limit >= 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    bare = unwrapped(model) or model
    reshard(model)
    replicas = Replicas(model, list(model.parameters()), True)
    with _estimating(bare, replicas) as layers:
        if not layers:
            return 0
        device, used = layers[0].num_batches_tracked.device, 0  # type: ignore[union-attr]
        for batch in _shown(islice(batches, limit), batches, limit, progress):
            args, kwargs = arguments(batch[0] if isinstance(batch, (tuple, list)) else batch)
            bare(*_moved(args, device), **_moved(kwargs, device))
            used += 1
        if not replicas.sum(torch.tensor(used, device=device)):
            raise SteppeError("there are no batches to re-estimate BatchNorm's statistics on: the loader is empty")
    return used


@contextmanager
def _estimating(model: nn.Module, replicas: Replicas) -> Iterator[list[_BatchNorm]]:
    """Inside, the layers to estimate sum up in new tensors; what these hold at the end is theirs, unless it raises."""
    modes = {module: module.training for module in model.modules()}
    held: list[Held] = []
    momenta: dict[_BatchNorm, float | None] = {}
    try:
        layers = _trained(model)
        for module in modes:
            module.training = False  # not eval(): models of many kinds do more in it
        for layer in layers:
            layer.training = True
            momenta[layer], layer.momentum = layer.momentum, None  # 1/n for the n-th batch
            _exchange(layer, held)
            layer.reset_running_stats()
        yield layers
        if layers:
            found = [{name: getattr(layer, name) for name in STATISTICS} for layer in layers]
            _join(found, replicas)
            _put_back(held)
            for layer, statistics in zip(layers, found, strict=True):
                if statistics["num_batches_tracked"] > 0:
                    for name, value in statistics.items():
                        getattr(layer, name).copy_(value)
    finally:
        _put_back(held)
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        model.train(modes[model])
        for module, mode in modes.items():
            module.training = mode
        reshard(model)


def _trained(model: nn.Module) -> list[_BatchNorm]:
    """The layers whose running statistics a training step would change."""
    if not model.training:
        model.train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    return [norm for norm in norms if norm.track_running_stats and norm.num_batches_tracked is not None]


def _exchange(layer: _BatchNorm, held: list[Held]) -> None:
    """Give a layer copies of its statistics, in float32 or better, to write to; ``held`` gets what was there.

    A layer that computes with statistics in float32 wants its weights in float32 too.
    """
    buffers, parameters = layer._buffers, layer._parameters
    statistics: list[Held] = [(buffers, name, b) for name in STATISTICS if (b := buffers[name]) is not None]
    weights: list[Held] = [(parameters, name, p) for name, p in parameters.items() if p is not None]
    widen = any(b.dtype in HALF for _, _, b in statistics)
    widen = widen and not any(is_sharded(p) for _, _, p in weights)  # FSDP puts in weights of its own
    held += statistics + weights if widen else statistics
    for store, name, buffer in statistics:
        store[name] = buffer.float() if widen and buffer.dtype in HALF else buffer.clone()
    for store, name, p in weights if widen else []:
        store[name] = nn.Parameter(p.float(), requires_grad=False)


def _put_back(held: list[Held]) -> None:
    for store, name, tensor in held:
        store[name] = tensor


def _join(found: list[dict[str, Tensor]], replicas: Replicas) -> None:
    """The mean over the batches of all ranks, in place."""
    if replicas.world == 1:
        return
    for statistics in found:
        number = statistics["num_batches_tracked"]
        own = number.clone()
        replicas.sum(number)
        for name in ("running_mean", "running_var"):
            replicas.sum(statistics[name].mul_(own)).div_(number)


def _moved(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    return type(inputs)(_moved(value, device) for value in inputs) if type(inputs) in (tuple, list) else inputs


def _shown(batches: Iterable[Any], source: Iterable[Any], limit: int | None, progress: bool) -> Iterable[Any]:
    """``batches`` under a bar, where one is wanted and ``rich`` is there."""
    if not progress:
        return batches
    try:
        from rich.console import Console
        from rich.progress import track
    except ModuleNotFoundError:
        return batches
    known = [number for number in (limit, len(source) if isinstance(source, Sized) else None) if number is not None]
    total = min(known, default=None)
    return track(batches, "BatchNorm statistics", total, console=Console(stderr=True), transient=True)
