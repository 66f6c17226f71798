"""Small float64 problems, every method by name, and the ways to run one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import steppe

Make = Callable[..., steppe.SharpnessAware]
"""(base, model, **options) → the optimizer."""

MAKERS: dict[str, Make] = {
    "sam": steppe.SAM,
    "asam": steppe.ASAM,
    "gsam": steppe.GSAM,
    "sagm": steppe.SAGM,
    "disam": steppe.DISAM,
    "disam+sagm": lambda base, **parts: steppe.DISAM(base, descent=steppe.GradientMatching(), **parts),
}
"""Methods that need no model, and a sum that takes three passes."""


def _sum_of_everything(base: Optimizer, model: nn.Module, sigma: float = 0.1, **options: Any) -> steppe.SharpnessAware:
    return steppe.DISAM(
        base,
        geometry=steppe.Friendly(steppe.NoisedFisher(model, sigma=sigma)),
        radius=steppe.TrustRegion(model, "ema", decay=0.5),
        descent=steppe.Reuse(2, descent=steppe.GradientMatching()),
        **options,
    )


EVERY: dict[str, Make] = {
    **{name: lambda base, model, make=make, **parts: make(base, model=model, **parts) for name, make in MAKERS.items()},
    "fisher": lambda base, model, **parts: steppe.FisherSAM(base, model=model, **parts),
    "friendly": lambda base, model, **parts: steppe.FriendlySAM(base, model=model, **parts),
    "vasso": lambda base, model, **parts: steppe.VaSSO(base, model=model, **parts),
    "looksam": lambda base, model, **parts: steppe.LookSAM(base, model=model, every=2, **parts),
    "tram": lambda base, model, **parts: steppe.TRAM(base, model, **parts),
    "tram-initial": lambda base, model, **parts: steppe.TRAM(base, model, "initial", "l2", **parts),
    "tram-ema": lambda base, model, **parts: steppe.TRAM(base, model, "ema", "mmd", decay=0.9, **parts),
    "tram-noise": lambda base, model, **parts: steppe.TRAM(base, model, "noise", **parts),
    "tram-fisher": lambda base, model, **parts: steppe.TRAMFisher(base, model, **parts),
    "tram-fisher-shared": lambda base, model, **parts: steppe.TRAMFisher(base, model, shared_pass=True, **parts),
    "disam+tram+sagm": lambda base, model, **parts: steppe.TRAM(
        base, model, objective=steppe.DomainVariance(0.1), descent=steppe.GradientMatching(0.01), **parts
    ),
    "asam-weights": lambda base, model, **parts: steppe.ASAM(base, weights_only=True, model=model, **parts),
    "looksam-3": lambda base, model, **parts: steppe.LookSAM(base, every=3, model=model, **parts),
    "disam+looksam": lambda base, model, **parts: steppe.DISAM(
        base, lam=1.0, descent=steppe.Reuse(2), model=model, **parts
    ),
    "friendly+fisher": lambda base, model, **parts: steppe.SAM(
        base, geometry=steppe.Friendly(steppe.Fisher(10.0)), model=model, **parts
    ),
    "half of the batch": lambda base, model, **parts: steppe.GSAM(base, ascent_fraction=0.5, model=model, **parts),
    "m-sharpness": lambda base, model, **parts: steppe.SAGM(base, m=2, model=model, **parts),
    "exact": lambda base, model, **parts: steppe.DISAM(
        base, model=model, **{"lam": 1.0, "accumulate": "exact", **parts}
    ),
    "everything": _sum_of_everything,
}
"""Every method, every option that changes what a step does, and sums of many parts, with the model they are for."""


@dataclass
class Problem:
    x: Tensor
    y: Tensor
    domain: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def of(self, chosen: Tensor | slice) -> Problem:
        """Some of the samples."""
        return Problem(self.x[chosen], self.y[chosen], self.domain[chosen])


def network(seed: int = 0, normalise: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)]
    if normalise:
        layers.insert(1, nn.BatchNorm1d(8))
    return nn.Sequential(*layers).double()


def batches(steps: int, samples: int = 15, domains: int = 3, seed: int = 1) -> list[Problem]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(steps):
        x = torch.randn(samples, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (samples,), generator=generator)
        domain = torch.randint(0, domains, (samples,), generator=generator)
        x = x * (1 + domain[:, None])  # domains that differ in difficulty
        made.append(Problem(x, y, domain))
    return made


def losses_of(model: nn.Module, problem: Problem) -> Tensor:
    return cross_entropy(model(problem.x), problem.y, reduction="none")


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def weights(model: nn.Module) -> Tensor:
    return flat([p.detach() for p in model.parameters()])


def closure_for(optimizer, model: nn.Module, problem: Problem, hook: Callable[[float], object] = lambda call: None):
    """A closure as a user writes it; ``hook`` is called in pass k with k before ``backward()``, with k + ½ after it."""
    calls = count()

    def closure():
        call = next(calls)
        optimizer.zero_grad()
        x, y, domain = optimizer.ascent_batch(problem.x, problem.y, domain=problem.domain)
        loss = optimizer.objective(losses_of(model, Problem(x, y, domain)), domain)
        hook(call)
        loss.backward()
        hook(call + 0.5)
        return loss

    return closure


def train(optimizer, model: nn.Module, problems: Iterable[Problem], how: str = "closure") -> None:
    """One step a problem, in one of the ways that a step can be called: closure, passes, contexts, bare."""
    for problem in problems:
        closure = closure_for(optimizer, model, problem)
        if how == "closure":
            optimizer.step(closure)
            continue
        if how == "passes":
            for each in optimizer.passes():
                with each:
                    closure()
        elif how == "contexts":
            written_out(optimizer, closure)
        else:
            closure()
            with optimizer.perturbed():
                closure()
        optimizer.step()


def written_out(optimizer, closure: Callable[[], Tensor]) -> None:
    """The passes of a step in which every sample is seen at once, by their contexts."""
    if optimizer.needs_clean_pass:
        with optimizer.clean():
            closure()
    if optimizer.climbs and optimizer.parts.measures:
        with optimizer.measuring():
            closure()
    with optimizer.climbing():
        closure()
    if optimizer.climbs:
        with optimizer.perturbed():
            closure()


class Noise:
    """The z that are added to a model's inputs, read off its first layer; how they are drawn is no test's business."""

    def __init__(self, model: nn.Sequential) -> None:
        self.drawn: list[Tensor] = []
        model.register_forward_pre_hook(self._given)
        model[0].register_forward_pre_hook(self._seen)

    def _given(self, model: nn.Module, args: tuple[Tensor]) -> None:
        (self._x,) = args

    def _seen(self, layer: nn.Module, args: tuple[Tensor]) -> None:
        z = args[0] - self._x
        if z.any() and not (self.drawn and torch.equal(self.drawn[-1], z)):
            self.drawn.append(z)


def moved(model: nn.Module, amount: float = 0.3) -> None:
    """Other weights, so that the model is not its reference any more."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(amount * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def region_on(model: nn.Module, **options) -> steppe.SharpnessAware:
    """TRAM with θ_0 for reference and the model moved away from it; nothing has been trained."""
    optimizer = steppe.TRAM(
        torch.optim.SGD(model.parameters(), lr=0.1), model, radius=steppe.TrustRegion(model, "initial", **options)
    )
    optimizer.state_dict()  # θ_0 is what it was when first saved
    moved(model)
    return optimizer


def radius_in(optimizer, compute) -> float:
    """d of a first pass in which ``compute()`` gives the loss."""
    with optimizer.climbing():
        compute().backward()
    return float(optimizer.parts.radius.length({}))
