"""Three changed lines: DISAM in a training loop of one's own.

Three domains see one rule through sensors of different noise; a fourth, never trained on, is noisier still. Needs
torch alone and takes seconds:  python examples/own_loop.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import steppe

torch.manual_seed(0)
rule = torch.randn(20)


def sensor(noise: float, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points whose class is the side of a plane, seen with noise."""
    clean = torch.randn(samples, 20)
    return clean + noise * torch.randn(samples, 20), (clean @ rule > 0).long()


def train(method: str) -> float:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    if method == "disam":
        optimizer = steppe.DISAM(optimizer, rho=0.1, lam=0.1, model=model)  # 1: wrap the optimizer
    for _ in range(200):
        parts = [sensor(noise, 32) for noise in (0.1, 0.5, 1.0)]
        x, y = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        domain = torch.arange(3).repeat_interleave(32)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            losses = cross_entropy(model(x), y, reduction="none")  # noqa: B023 (called at once)
            # 2: the objective needs to know which domain each sample is from
            loss = optimizer.objective(losses, domain) if method == "disam" else losses.mean()  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)  # 3: the closure is called once a pass
    x, y = sensor(1.5, 10_000)
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


for method in ("erm", "disam"):
    print(f"{method:6} accuracy on the sensor never seen: {train(method):.1%}")
