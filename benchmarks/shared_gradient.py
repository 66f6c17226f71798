"""DISAM before a descent that uses g: is the climb's gradient a good enough g?

    python benchmarks/shared_gradient.py            # some ten minutes on two cores

GSAM's and SAGM's descents need g = ∇L(w); DISAM's climb has a = ∇(L − λ Var) only. Exact (``shared=False``) takes
one more pass, 3 in all; ``shared=True`` takes a for g. Measured on EmojiStyles (EfficientNet-Lite0 at 64 × 64, 3 × 8
pictures, `line` held out, strict split), for two values of λ: the cosine between a and g and their relative distance
along the exact path, the seconds per step, and the accuracy at the end, in domain and held out, over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable

import torch
from measure import setting
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe
from steppe.data import DomainDataset, make_splits, open_dataset
from steppe.data.loader import Batch, balanced_loader, evaluation_loader
from steppe.data.splits import Splits
from steppe.data.transforms import eval_transform, train_transform
from steppe.models import Classifier, build_classifier

SIZE, HELD_OUT = 64, "line"
DESCENTS = {
    "disam+sagm": lambda shared: steppe.GradientMatching(0.001, shared=shared),
    "disam+gsam": lambda shared: steppe.SurrogateGap(0.4, shared=shared),
}


def flat_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], retain_graph=True)
    return torch.cat([g.reshape(-1) for g in gradients])


def compare_gradients(model: Classifier, batch: Batch, lam: float) -> tuple[float, float]:
    """cos(a, g) and ‖a − g‖/‖g‖ at the present weights, leaving gradients and running statistics as they are."""
    was = {name: buffer.clone() for name, buffer in model.named_buffers()}
    losses = cross_entropy(model(batch.x), batch.y, reduction="none")
    coefficients = steppe.DomainVariance(lam).coefficients(losses.detach(), batch.domain)
    g, a = flat_gradient(losses.mean(), model), flat_gradient((coefficients * losses).sum(), model)
    for name, buffer in model.named_buffers():
        buffer.copy_(was[name])
    return torch.cosine_similarity(a, g, dim=0).item(), ((a - g).norm() / g.norm()).item()


def train(
    dataset: DomainDataset, splits: Splits, name: str, lam: float, shared: bool, seed: int, steps: int
) -> tuple[Classifier, float, list[tuple[float, float]]]:
    """The trained model, the median seconds of a step, and the comparison of gradients every tenth step."""
    torch.manual_seed(seed)
    model = build_classifier("efficientnet_lite0", len(dataset.classes)).to(memory_format=torch.channels_last)
    base = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=1e-4)
    optimizer = steppe.DISAM(base, lam=lam, descent=DESCENTS[name](shared), model=model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(base, steps)
    transform = train_transform(SIZE, model.mean, model.std)
    batches: Iterable[Batch] = balanced_loader(
        dataset, splits.train, batch_per_domain=8, start=0, stop=steps, seed=seed, transform=transform
    )
    seconds, compared = [], []
    for step, batch in enumerate(batches):
        if not shared and step % 10 == 5:
            compared.append(compare_gradients(model, batch, lam))

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            loss = optimizer.objective(cross_entropy(model(batch.x), batch.y, reduction="none"), batch.domain)
            loss.backward()
            return loss

        start = time.perf_counter()
        optimizer.step(closure)
        seconds.append(time.perf_counter() - start)
        scheduler.step()
    return model.eval(), statistics.median(seconds), compared


@torch.no_grad()
def accuracy(dataset: DomainDataset, splits: Splits, model: Classifier, domains: Iterable[str], split: str) -> float:
    """Mean over the domains, in per cent."""
    transform = eval_transform(SIZE, model.mean, model.std)
    shares = []
    for domain in domains:
        indices = splits.evaluation[domain][split]
        loader = evaluation_loader(dataset, domain, indices, batch_size=64, transform=transform)
        shares.append(sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(indices))
    return 100 * statistics.mean(shares)


def spread(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--lam", type=float, nargs="+", default=[0.1, 0.5])
    arguments = parser.parse_args()
    dataset = open_dataset("emoji")
    print(setting("timm") + f"; {arguments.steps} steps, {arguments.seeds} seeds\n")
    print("| method | λ | g | cos(a, g), least | distance, largest | s/step | in domain | held out |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for lam in arguments.lam:
        for name in DESCENTS:
            for shared in (False, True):
                seconds, compared, inside, outside = [], [], [], []
                for seed in range(arguments.seeds):
                    splits = make_splits(dataset, HELD_OUT, trial_seed=seed)
                    model, time_of_step, pairs = train(dataset, splits, name, lam, shared, seed, arguments.steps)
                    seconds.append(time_of_step)
                    compared += pairs
                    inside.append(accuracy(dataset, splits, model, splits.train, splits.in_domain))
                    outside.append(accuracy(dataset, splits, model, [HELD_OUT], splits.answer))
                cosines = [cosine for cosine, _ in compared]
                near = f"{statistics.median(cosines):.3f}, {min(cosines):.3f}" if compared else ""
                far = f"{max(distance for _, distance in compared):.3f}" if compared else ""
                print(
                    f"| {name} | {lam} | {'shared' if shared else 'exact'} | {near} | {far} "
                    f"| {statistics.median(seconds):.3f} | {spread(inside)} | {spread(outside)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
