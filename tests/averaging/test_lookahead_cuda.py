"""What only an accelerator can show of Lookahead; skipped where there is none. The rest is in test_lookahead_use."""

from __future__ import annotations

import pytest
import torch
from every_method import Classifier, weights
from test_cuda import OnTwo, no_synchronisation, on
from test_lookahead_use import COPIES, VARIANTS
from test_memory import large_model
from torch import nn
from torch.nn.functional import cross_entropy

import steppe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
variant = pytest.mark.parametrize("variant", VARIANTS)
inner = pytest.mark.parametrize("inner", ["bare", "sam"])


def made(model: nn.Module, base: torch.optim.Optimizer, inner: str, variant: str, k: int = 2) -> steppe.Lookahead:
    return steppe.Lookahead(steppe.SAM(base, model=model) if inner == "sam" else base, k, 0.4, **VARIANTS[variant])


def step(optimizer: torch.optim.Optimizer, model: nn.Module, data: tuple[torch.Tensor, ...]) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(data[0]), data[1])
        loss.backward()
        return loss

    optimizer.step(closure)


@inner
@variant
def test_a_round_does_not_synchronise_with_the_host(inner: str, variant: str) -> None:
    model = Classifier(dropout=0.5).cuda()
    optimizer = made(model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True), inner, variant)
    data = on("cuda", 0)
    for _ in range(4):  # allocations and lazy initialisation
        step(optimizer, model, data)
    before = weights(model)
    with no_synchronisation():
        for _ in range(5):
            step(optimizer, model, data)
            with optimizer.slow_weights():
                pass
    assert not torch.equal(weights(model), before)
    assert optimizer.rounds == 4


@inner
@variant
def test_any_devices_agree_with_the_cpu(inner: str, variant: str) -> None:
    results = []
    for first, last in (("cpu", "cpu"), ("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")):
        model = OnTwo().double().place(first, last)
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = made(model, base, inner, variant)
        for number in range(7):
            step(optimizer, model, on(last, number, torch.float64))
        results.append(torch.cat([p.detach().cpu().reshape(-1) for p in model.parameters()]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("options", "copies"), [each[1:] for each in COPIES], ids=[each[0] for each in COPIES])
def test_copies_of_the_weights_over_the_inner_optimizer(options: dict[str, object], copies: int) -> None:
    """Of a network of so many numbers that a portion of them is small."""

    def peak(looks_ahead: bool) -> float:
        torch.cuda.empty_cache()
        begin = torch.cuda.memory_allocated()
        model = large_model("cuda", width=5120)
        size = torch.cuda.memory_allocated() - begin
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        if looks_ahead:
            optimizer = steppe.Lookahead(optimizer, 3, **options)
        data = torch.randn(4, 5120, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda")
        for _ in range(4):
            step(optimizer, model, data)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step(optimizer, model, data)
        return (torch.cuda.max_memory_allocated() - begin) / size

    peak(False)  # cuBLAS takes its workspace
    assert peak(True) - peak(False) == pytest.approx(copies, abs=0.15)
