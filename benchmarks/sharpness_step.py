"""What a sharpness-aware step costs: against ERM's step, and its own part against pytorch_optimizer's.

    python benchmarks/sharpness_step.py                 # on the CPU, some ten minutes on two cores
    python benchmarks/sharpness_step.py --device cuda

Three tables, each figure the median of interleaved pairs with its 95 % interval:

1. seconds per step of SAM and DISAM over ERM's, ResNet-18 at 112 × 112, three domains of 16;
2. what ``objective()`` adds for DISAM, as a share of that step: coefficients, value and its backward pass;
3. the optimizer's own part (climb, restore, the base's step; gradients given) over that of ``pytorch_optimizer``'s
   SAM, on the parameter lists of ResNet-50 and ViT-B/16, base SGD with momentum in both.

``pytorch_optimizer`` is not a dependency of steppe: install it to get the third table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torchvision
from measure import Ratio, interleaved, setting
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe


def synchronised(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


class Training:
    """One network with one optimizer and a fixed batch; calling it makes a step."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer] | None, device: torch.device, size: int, batch: int):
        torch.manual_seed(0)
        self.model = torchvision.models.resnet18(num_classes=10).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.sharp = make(self.optimizer, model=self.model) if make else None
        self.x = torch.randn(3 * batch, 3, size, size, device=device)
        self.y = torch.randint(0, 10, (3 * batch,), device=device)
        self.domain = torch.arange(3, device=device).repeat_interleave(batch)

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        losses = cross_entropy(self.model(self.x), self.y, reduction="none")
        loss = self.sharp.objective(losses, self.domain) if self.sharp else losses.mean()
        loss.backward()
        return loss

    def __call__(self) -> None:
        if self.sharp:
            self.sharp.step(self.closure)
        else:
            self.closure()
            self.optimizer.step()


def objective_alone(device: torch.device, batch: int) -> Ratio:
    """DISAM's objective (value, coefficients, backward to the losses) less the mean's, as seconds in a and b."""
    parameter = nn.Parameter(torch.ones(1, device=device))
    optimizer = steppe.DISAM(torch.optim.SGD([parameter], lr=0.0))
    losses = torch.rand(3 * batch, device=device, requires_grad=True)
    domain = torch.arange(3, device=device).repeat_interleave(batch)
    repeats = 200

    def disam() -> None:
        with optimizer.climbing():
            for _ in range(repeats):
                optimizer.objective(losses, domain).backward()
        losses.grad = None

    def mean() -> None:
        for _ in range(repeats):
            losses.mean().backward()
        losses.grad = None

    ratio = interleaved(synchronised(disam, device), synchronised(mean, device), pairs=20)
    return Ratio(ratio.median, ratio.low, ratio.high, ratio.a_median / repeats, ratio.b_median / repeats, ratio.pairs)


def own_part(name: str, device: torch.device, pairs: int) -> Ratio:
    """Both optimizers' own work of one step: the closures only put ready gradients into ``.grad``."""
    factory = torchvision.models.resnet50 if name == "ResNet-50" else torchvision.models.vit_b_16

    def build(make: Callable) -> Callable[[], None]:
        torch.manual_seed(0)
        parameters = list(factory().to(device).parameters())
        gradients = [torch.randn_like(p) for p in parameters]
        return synchronised(make(parameters, gradients), device)

    return interleaved(build(ours), build(theirs), pairs=pairs, warmup=3)


def give(parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g


def ours(parameters: list[nn.Parameter], gradients: list[Tensor]) -> Callable[[], None]:
    optimizer = steppe.SAM(torch.optim.SGD(parameters, lr=1e-9, momentum=0.9))
    return lambda: optimizer.step(lambda: give(parameters, gradients))


def theirs(parameters: list[nn.Parameter], gradients: list[Tensor]) -> Callable[[], None]:
    from pytorch_optimizer import SAM

    optimizer = SAM(parameters, torch.optim.SGD, rho=0.05, lr=1e-9, momentum=0.9)

    def run() -> None:
        give(parameters, gradients)
        optimizer.step(lambda: give(parameters, gradients))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=20)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    size, batch = 112, 16
    print(setting())
    print(f"\nSeconds per step over ERM's: ResNet-18, {size} × {size}, batch 3 × {batch}, {arguments.pairs} pairs\n")
    print("| method | ratio [95 %] | s | ERM, s |\n| --- | --- | --- | --- |")
    erm = synchronised(Training(None, device, size, batch), device)
    for method in (steppe.SAM, steppe.DISAM):
        training = synchronised(Training(method, device, size, batch), device)
        ratio = interleaved(training, erm, pairs=arguments.pairs)
        print(f"| {method.__name__} | {ratio} | {ratio.a_median:.4f} | {ratio.b_median:.4f} |", flush=True)
    alone = objective_alone(device, batch)
    added = alone.a_median - alone.b_median
    print(
        f"\nobjective() for DISAM: {alone.a_median * 1e6:.0f} µs a call against {alone.b_median * 1e6:.0f} µs for the "
        f"mean: adds {added / ratio.a_median:.3%} of a DISAM step"
    )
    try:
        import pytorch_optimizer  # noqa: F401
    except ModuleNotFoundError:
        print("\npytorch_optimizer is not installed: no comparison of the optimizer's own part")
        return
    print("\nThe optimizer's own part of a SAM step over pytorch_optimizer's, " + setting("pytorch_optimizer") + "\n")
    print("| parameters of | ratio [95 %] | ours, s | theirs, s |")
    print("| --- | --- | --- | --- |")
    for name in ("ResNet-50", "ViT-B/16"):
        ratio = own_part(name, device, arguments.pairs)
        print(f"| {name} | {ratio} | {ratio.a_median:.4f} | {ratio.b_median:.4f} |", flush=True)


if __name__ == "__main__":
    main()
