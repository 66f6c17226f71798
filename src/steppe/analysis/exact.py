"""Double precision wherever a device has it."""

from __future__ import annotations

from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """In float64, where it is; on the CPU where its device (MPS) knows no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
