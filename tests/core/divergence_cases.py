"""Every divergence, and predictions to compare by them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from steppe.trust import KL, L2, MMD, Additive, Divergence, Renyi, ReverseKL, SymmetricKL

OF_SOFTMAX: list[Additive] = [KL(), ReverseKL(), SymmetricKL(), Renyi(), Renyi(0.1), Renyi(2.0), Renyi(8.0)]
ADDITIVE: list[Additive] = [*OF_SOFTMAX, L2()]
ALL: list[Divergence] = [*ADDITIVE, MMD()]
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def logits(seed: int, shape: tuple[int, ...], scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).to(dtype)


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(2, 9))
SEEDS = st.integers(0, 10_000)
