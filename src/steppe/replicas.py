"""The ranks that train one model together: DistributedDataParallel's replicas, or FSDP2's shards.

The gradient of a step is that of the joined batch: Σ_r (n_r / N) ∇L_r with n_r samples on rank r. Both wrappers
average over the R ranks as if all had equally many, so a rank's loss is weighted by R n_r / N.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from steppe.shards import is_sharded

BUCKET = 2**23
"""Numbers that are reduced in one call."""


class Replicas:
    """How a model is spread over processes; alone where it is not.

    Args:
        model: the module as it is called, wrapped by ``DistributedDataParallel`` or sharded by ``fully_shard``; or
            ``None``.
        parameters: the optimizer's.
        global_ascent: whether the climb's gradient is that of the joined batch. ``None``: of the rank's own samples
            under DDP (as in the SAM paper, and without communication), of all under FSDP2.
        exchanges: whether some of them are to change their dtype for a pass (``climb_dtype``).

    Raises:
        ValueError: ``global_ascent=False`` with sharded parameters, or they are sharded and there is no model; or ranks
            are to climb on their own with ``static_graph=True``; or replicas are to change a dtype.
    """

    def __init__(
        self,
        model: nn.Module | None,
        parameters: Sequence[Tensor],
        global_ascent: bool | None,
        *,
        exchanges: bool = False,
    ) -> None:
        sharded = [p for p in parameters if is_sharded(p)]
        self._sharded = bool(sharded)
        self._divided = _divided(model) if sharded else []
        inner = {module for outer in self._divided for module in outer.modules() if module is not outer}
        self._roots = [module for module in self._divided if module not in inner]
        self._wrappers: list[Any] = []
        self._groups: list[Any] = []
        if sharded:
            if model is None:
                raise ValueError("with sharded parameters steppe must know the model: pass model=, or attach(model)")
            if global_ascent is False:
                raise ValueError(
                    "global_ascent=False is impossible with FSDP2: every rank gathers the same weights from the "
                    "shards, so there is one w + ε for all of them; use global_ascent=True, or DDP"
                )
            # Where some parameters are spread over a part of the ranks only, those of the largest mesh see all samples.
            mesh = max(dict.fromkeys(p.device_mesh for p in sharded), key=lambda mesh: mesh.size())  # type: ignore[attr-defined]
            self._groups = [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
        elif model is not None:
            # The model itself, or whatever holds one: torch.compile's wrapper, a module with several.
            self._wrappers = [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]
            self._groups = [wrapper.process_group for wrapper in self._wrappers[:1]]
        self.world = math.prod(torch.distributed.get_world_size(group) for group in self._groups)
        self.own_climb = bool(self._wrappers) and self.world > 1 and not global_ascent
        """Whether each rank climbs on its own samples."""
        self._used: set[nn.Parameter] = set()
        if self.own_climb and any(wrapper.static_graph for wrapper in self._wrappers):
            raise ValueError(
                "DistributedDataParallel(static_graph=True) must reduce gradients in its first backward pass, so ranks "
                "cannot climb each on its own: use global_ascent=True, or static_graph=False"
            )
        if exchanges and self._wrappers and self.world > 1:
            # Its hooks are on what accumulates a gradient, which torch replaces with the dtype, and not back again.
            raise ValueError(
                "climb_dtype is impossible with DistributedDataParallel: a parameter that changes its dtype is not "
                "reduced any more, and the replicas would drift apart; keep the parameters in float32 under autocast"
            )

    def check(self, parameters: Sequence[Tensor]) -> None:
        """Raise ``RuntimeError`` where parameters have been sharded since, as a library does that prepares a model."""
        if parameters and is_sharded(parameters[0]) and not self._sharded:
            raise RuntimeError(
                "the parameters were sharded after the optimizer was told of its model: call optimizer.attach(model)"
            )

    @contextmanager
    def own(self) -> Iterator[None]:
        """A pass whose gradient stays the rank's own, where ranks climb on their own."""
        with ExitStack() as stack:
            for wrapper in self._wrappers if self.own_climb else []:
                stack.enter_context(wrapper.no_sync())
            try:
                yield
            finally:
                if self.own_climb:
                    self._used.update(p for p in self._unsure() if p.grad is not None)

    @contextmanager
    def joint(self) -> Iterator[None]:
        """A pass whose gradient is that of all ranks.

        A wrapper that finds unused parameters counts what an own pass has reached as used until the next reduction,
        and then insists on a gradient, which has been cleared: it gets zeros. So all ranks have gradients of the same
        parameters, of those that any rank has reached in any pass.
        """

        @torch.no_grad()
        def fill(_: Tensor) -> None:
            for p in self._used:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)

        # At the last moment, just before the first gradient arrives: the caller may clear gradients at any other.
        unsure = self._unsure() if self._used else []
        handles = [p.register_hook(fill) for p in unsure]  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._used.clear()

    def _unsure(self) -> list[nn.Parameter]:
        """The parameters that a pass may or may not reach."""
        wrappers = [wrapper for wrapper in self._wrappers if wrapper.find_unused_parameters]
        return [p for wrapper in wrappers for p in wrapper.parameters() if p.requires_grad]

    def weight(self, samples: int, like: Tensor) -> Tensor | None:
        """R n_r / N, 0-dim, in the dtype (float32 or better) and on the device of ``like``; ``None`` where there is one
        rank. Every rank must call.
        """
        if self.world == 1:
            return None
        return samples * self.world / self.joined(samples, like)

    def joined(self, samples: int, like: Tensor) -> Tensor:
        """N, the samples of all ranks together, 0-dim; see :meth:`weight`."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return self.sum(torch.full((), float(samples), dtype=dtype, device=like.device))

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over the ranks, in place. Every rank must call."""
        for group in self._groups:
            torch.distributed.all_reduce(tensor, group=group)
        return tensor

    def largest(self, value: Tensor) -> Tensor:
        """The largest of the ranks' values, in place. Every rank must call."""
        for group in self._groups:
            torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX, group=group)
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, ``[n_r, ...]`` each, in one tensor. Every rank must call.

        They may have different numbers of rows: the host waits to know how many.
        """
        for group in self._groups:
            world = torch.distributed.get_world_size(group)
            mine = torch.tensor([len(rows)], device=rows.device)
            counts = [torch.empty_like(mine) for _ in range(world)]
            torch.distributed.all_gather(counts, mine, group=group)
            lengths = [int(count) for count in counts]
            padded = rows.new_zeros(max(lengths), *rows.shape[1:])
            padded[: len(rows)] = rows
            found = [torch.empty_like(padded) for _ in range(world)]
            torch.distributed.all_gather(found, padded, group=group)
            rows = torch.cat([part[:length] for part, length in zip(found, lengths, strict=True)])
        return rows

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor], weight: Tensor | None) -> None:
        """Overwrite gradients of the ranks' own samples by that of the joined batch, the same bits on every rank.

        Args:
            tensors: parallel on all ranks.
            weight: R n_r / N, or ``None`` for equal shares.
        """
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            flat.mul_(1 / self.world if weight is None else (weight / self.world).to(flat))
            self.sum(flat)
            sizes = [tensor.numel() for tensor in bucket]
            for tensor, reduced in zip(bucket, torch.split(flat, sizes), strict=True):
                tensor.copy_(reduced.view_as(tensor))

    def reshard(self) -> None:
        """Drop gathered weights, which no longer are those of the shards."""
        for module in self._divided:
            # Weights that are being gathered ahead of their use would count as fresh once they are there. (FSDP gathers
            # ahead for a backward pass in the order of all forward passes since the last, a reference's among them.)
            if any(getattr(group, "_all_gather_result", None) is not None for group in _parameter_groups(module)):
                module.unshard()
            module.reshard()
        for root in self._roots:
            # FSDP lets what it gathers wait for the shards at a forward pass only, not for what is written after it.
            state = root._get_fsdp_state()
            context = getattr(state, "_comm_ctx", None)
            for name in ("all_gather_copy_in_stream", "all_gather_stream"):
                if hasattr(context, name):
                    getattr(context, name).wait_stream(state._device_handle.current_stream())

    def interrupted(self) -> None:
        """An exception ended a pass: what FSDP had gathered goes, with the rest of what it knows of this pass."""
        for root in self._roots:
            if hasattr(root, "reset_iter_state"):
                with suppress(RuntimeError):  # another root is at work; what was raised matters more
                    root.reset_iter_state()
        self.reshard()


def unwrapped(model: nn.Module | None) -> nn.Module | None:
    """The module inside ``torch.compile``'s and ``DistributedDataParallel``'s wrappers."""
    inner: Any = model
    while hasattr(inner, "_orig_mod") or isinstance(inner, nn.parallel.DistributedDataParallel):
        inner = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    found: nn.Module | None = inner
    return found


def _divided(model: nn.Module | None) -> list[Any]:
    """The modules that ``fully_shard`` was applied to."""
    from torch.distributed.fsdp import FSDPModule

    return [] if model is None else [module for module in model.modules() if isinstance(module, FSDPModule)]


def _parameter_groups(module: Any) -> Sequence[Any]:
    """What FSDP gathers together of a module; one group, or none, in earlier versions of torch."""
    state = module._get_fsdp_state()
    found = getattr(state, "_fsdp_param_groups", None)
    return [getattr(state, "_fsdp_param_group", None)] if found is None else found


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype and device, up to :data:`BUCKET` numbers together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        alike = bucket and (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not alike or size + tensor.numel() > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
