"""The global random generators: kept, put back, and left alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The state of torch's global generators: the CPU's and those of some accelerators. No device is waited for."""

    cpu: Tensor
    accelerators: dict[torch.device, Tensor]

    @classmethod
    def now(cls, devices: Iterable[torch.device]) -> RandomState:
        """The state of the CPU's generator and of those of ``devices``."""
        found = {device for device in devices if device.type not in ("cpu", "meta")}
        return cls(torch.get_rng_state(), {device: _module(device).get_rng_state(device) for device in found})

    def restore(self) -> None:
        """Put the generators back."""
        torch.set_rng_state(self.cpu)
        for device, state in self.accelerators.items():
            _module(device).set_rng_state(state, device)


@contextmanager
def undisturbed(devices: Iterable[torch.device]) -> Iterator[None]:
    """Whatever is drawn inside, the global generators are afterwards as they were."""
    before = RandomState.now(devices)
    try:
        yield
    finally:
        before.restore()


def coming_seed() -> int:
    """What the CPU's global generator would draw next. It is not drawn: nothing else in a run is shifted by it.

    It stays the same until something draws from that generator, so a caller adds what tells its uses apart.
    """
    with undisturbed(()):
        return int(torch.randint(2**62, (), device="cpu").item())


def _module(device: torch.device):  # type: ignore[no-untyped-def]  # torch.cuda, torch.xpu, ...: modules of one interface
    return torch.get_device_module(device)
