"""What is measured of a method on a workload; each function gives a plain dictionary."""

from __future__ import annotations

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from contenders import METHODS, PEERS, Contender
from measure import interleaved
from memory import bytes_of, peak_bytes, tensors_of
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from workloads import Workload, sample_losses


@dataclass(frozen=True)
class Run:
    """What all measurements of a run have in common.

    Args:
        workload: the network and its batch.
        device: where.
        pairs: of how many interleaved pairs a ratio is the median.
        steps: at least how many steps are timed at once; whole cycles of a method in any case.
    """

    workload: Workload
    device: torch.device
    pairs: int
    steps: int

    def finish(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def unit(self, *contenders: Contender) -> int:
        """How many steps of them are timed at once, on both sides of a pair."""
        cycle = max(contender.cycle for contender in contenders)
        return -(-self.steps // cycle) * cycle

    def sequences(self, contender: Contender) -> int:
        return max(contender.sequences, self.workload.domains if contender.domains else 1)


class Training:
    """A network, the same at each call, with a contender's optimizer and a batch.

    Args:
        contender: its optimizer.
        run: its network and device.
        sequences: how many its tokens are cut into, where not as the contender wants it.
    """

    def __init__(self, contender: Contender, run: Run, sequences: int | None = None) -> None:
        torch.manual_seed(0)
        self.contender, self.run = contender, run
        self.model = run.workload.network().to(run.device)
        self.built = contender.build(self.model)
        self.batch = run.workload.batch(sequences or run.sequences(contender), run.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    @property
    def domain(self) -> Tensor | None:
        return self.batch.domain if self.contender.domains else None

    def one_pass(self) -> Tensor:
        """Forward and backward, as a user's closure."""
        self.built.optimizer.zero_grad()
        x, y = self.built.ascent_batch(self.batch.x, self.batch.y)
        loss = self.built.objective(sample_losses(self.model(x), y), self.domain)
        loss.backward()
        return loss

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.built.step(self.one_pass)
        self.run.finish()


class OwnPart(Training):
    """The optimizer's own part of a step: its passes find gradients, and logits, ready made.

    The network's ``forward`` gives the logits that it gave once, so hooks still see calls, and a reference model costs
    nothing but its bookkeeping; an embedding whose output noise is added to is called, and gives what it gave once.
    Optimizers overwrite gradients, so every pass of a step has a set of its own, written anew before each step, outside
    of what is timed and counted.
    """

    def __init__(self, contender: Contender, run: Run) -> None:
        super().__init__(contender, run)
        embedding = next((module for module in self.model.modules() if isinstance(module, nn.Embedding)), None)
        with torch.no_grad():
            logits = self.model(self.batch.x)
            embedded = None if embedding is None else embedding(self.batch.x)

        def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
            if embedding is not None and embedding._forward_hooks:
                embedding(x)
            return logits

        self.model.forward = forward
        if embedding is not None:
            embedding.forward = lambda *_: embedded
        self.losses = torch.rand(len(self.batch.x), device=run.device)
        self.master = [torch.randn_like(p) for p in self.parameters]
        self.sets: list[list[Tensor]] = []
        self.used = 0
        # Its first steps allocate, and whoever builds up a state does it here.
        self.seconds(2 * contender.cycle)

    def give(self) -> None:
        """A pass that puts ready gradients into ``.grad``."""
        if self.used == len(self.sets):
            self.sets.append([g.clone() for g in self.master])
        x, _ = self.built.ascent_batch(self.batch.x, self.batch.y)
        self.model(x)
        if self.contender.domains:
            self.built.objective(self.losses, self.domain)
        for p, g in zip(self.parameters, self.sets[self.used], strict=True):
            p.grad = g
        self.used += 1

    def refresh(self) -> None:
        """Bring the ready gradients back to what they were."""
        for gradients in self.sets:
            torch._foreach_copy_(gradients, self.master)
        self.used = 0
        self.run.finish()

    def step(self) -> None:
        self.built.step(self.give)
        self.run.finish()

    def seconds(self, steps: int) -> float:
        """The seconds that this many steps take."""
        total = 0.0
        for _ in range(steps):
            self.refresh()
            start = time.perf_counter()
            self.step()
            total += time.perf_counter() - start
        return total


def measure_step(contender: Contender, run: Run) -> dict[str, Any]:
    """Seconds of steps over those of as many steps of ERM on the same batch."""
    unit = run.unit(contender)
    training, erm = Training(contender, run), Training(METHODS["erm"], run, run.sequences(contender))
    ratio = interleaved(lambda: training.steps(unit), lambda: erm.steps(unit), pairs=run.pairs)
    return {**asdict(ratio), "steps": unit}


def measure_memory(contender: Contender, run: Run) -> dict[str, Any]:
    """Bytes held between steps, and at the peak of a step, less ERM's on the same batch, in copies of the weights."""
    erm_held, erm_peak, _ = _erm_memory(run, run.sequences(contender))
    held, peak, weights = _memory(contender, run, run.sequences(contender))
    return {"held": (held - erm_held) / weights, "peak": (peak - erm_peak) / weights}


def _memory(contender: Contender, run: Run, sequences: int) -> tuple[int, int, int]:
    gc.collect()
    before = torch.cuda.memory_allocated() if run.device.type == "cuda" else 0
    training = Training(contender, run, sequences)
    training.steps(2 * contender.cycle)
    clear = training.built.optimizer.zero_grad
    clear()
    held = bytes_of(tensors_of(training.model, training.built.optimizer))
    peak = peak_bytes(lambda: training.steps(contender.cycle), clear, held, run.device)
    return held, peak - before, bytes_of(training.parameters)


@cache
def _erm_memory(run: Run, sequences: int) -> tuple[int, int, int]:
    erm = METHODS["erm"]
    if run.device.type == "cuda":
        _memory(erm, run, sequences)  # cuBLAS allocates its workspace once, in whatever comes first
    return _memory(erm, run, sequences)


def measure_launches(contender: Contender, run: Run) -> dict[str, Any]:
    """What the optimizer's own part has to launch, and how often it waits for the device, per step.

    On CUDA: kernels launched, and operations that synchronise. On the CPU: ATen operations called, a foreach one
    counted once, however many tensors it has.
    """
    own, steps = OwnPart(contender, run), contender.cycle
    if run.device.type == "cpu":
        return {"operations": _per_step(own, steps, _operations) / steps}
    return {
        "kernels": _per_step(own, steps, _kernels) / steps,
        "synchronisations": _per_step(own, steps, _synchronisations) / steps,
    }


def _per_step(own: OwnPart, steps: int, counting: Callable[[], Any]) -> int:
    total = 0
    for _ in range(steps):
        own.refresh()
        with counting() as counts:
            own.built.step(own.give)
        own.run.finish()
        total += sum(counts.values())
    return total


class _Calls(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _operations() -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    with _Calls(counts):
        yield counts


@contextmanager
def _kernels() -> Iterator[Counter[str]]:
    # Launches rather than kernels: annotations of ranges come as events on the device too.
    counts: Counter[str] = Counter()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        yield counts
        torch.cuda.synchronize()
    for event in profiler.key_averages():
        if "LaunchKernel" in event.key or "GraphLaunch" in event.key:
            counts[event.key] += event.count


@contextmanager
def _synchronisations() -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            counts[f"{warning.filename}:{warning.lineno}"] += 1


def measure_own_part(contender: Contender, run: Run) -> dict[str, Any]:
    """Seconds of the optimizer's own part over those of its peer's, with gradients ready and the same base."""
    assert contender.peer is not None
    peer = PEERS[contender.peer]
    mine, other = OwnPart(contender, run), OwnPart(peer, run)
    unit = max(contender.cycle, peer.cycle)
    ratio = interleaved(lambda: mine.seconds(unit), lambda: other.seconds(unit), pairs=run.pairs)
    return {**asdict(ratio), "steps": unit}


def measure_objective(contender: Contender, run: Run) -> dict[str, Any]:
    """What an objective adds: seconds of a step over those of the method it differs from, and of its call alone.

    ``added`` are the seconds that a call with its backward pass to the losses takes beyond the mean's, and ``share``
    what that is of a step of the other method. It is measured apart because it is often far below what a step's
    seconds vary by; on a GPU, where launching runs ahead of the device, it is an upper bound.
    """
    assert contender.over is not None
    unit = run.unit(contender)
    training, other = Training(contender, run), Training(METHODS[contender.over], run, run.sequences(contender))
    ratio = interleaved(lambda: training.steps(unit), lambda: other.steps(unit), pairs=run.pairs)
    losses = torch.rand(len(training.batch.x), device=run.device, requires_grad=True)
    repeats = 200
    climbing = training.built.optimizer.climbing
    training.built.optimizer.zero_grad()

    def objective() -> None:
        with climbing():
            for _ in range(repeats):
                training.built.objective(losses, training.domain).backward()
        run.finish()

    def mean() -> None:
        for _ in range(repeats):
            losses.mean().backward()
        run.finish()

    alone = interleaved(objective, mean)
    added = (alone.a_median - alone.b_median) / repeats
    return {**asdict(ratio), "steps": unit, "added": added, "share": added / (ratio.b_median / unit)}


QUANTITIES: dict[str, Callable[[Contender, Run], dict[str, Any]]] = {
    "memory": measure_memory,
    "launches": measure_launches,
    "own": measure_own_part,
    "objective": measure_objective,
    "step": measure_step,
}
