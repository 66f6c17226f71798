"""How quickly pictures arrive: against torchvision's ImageFolder and DataLoader, and as a share of a training step.

    python benchmarks/input_pipeline.py                     # on the CPU, some ten minutes on two cores
    python benchmarks/input_pipeline.py --device cuda
    python benchmarks/input_pipeline.py --folder PHOTOS     # your own root/<domain>/<class>/<pictures>

Two tables:

1. pictures per second of ``balanced_loader`` over those of one DataLoader on torchvision's ImageFolders (one a domain,
   concatenated, shuffled), with the same transform (DomainBed's augmentation), batch size and number of workers;
   starting and ending the workers counts on both sides. The ratio is the median of interleaved pairs with its 95 %
   interval; above 1 means that steppe is quicker. Without workers it depends on what else the machine does: torch's own
   threads, which torchvision's side uses and steppe's does not, then wait for each other. The load is printed.
2. the share of a training step (ERM, AdamW) spent waiting for the next batch: median over steps and its 95 % interval.

Unless ``--folder`` is given the JPEGs are made for the run: mosaics of EmojiStyles pictures, enlarged, 320 to 500
pixels wide, quality 90. Their size in bytes is printed; decoding depends on that, not on what they show.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from measure import Ratio, interleaved, setting
from PIL import Image
from scipy.stats import bootstrap
from torch.nn.functional import cross_entropy
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler
from torchvision.datasets import ImageFolder

from steppe.data import Batch, DomainDataset, ImageFolders, balanced_loader, open_dataset, train_transform
from steppe.models import build_classifier

SIZE, PER_DOMAIN, DOMAINS = 112, 16, 3
HALF = (0.5, 0.5, 0.5)


def make_photos(root: Path, each: int) -> None:
    """``each`` mosaics a class (four) and domain (three): as many details a square inch as a photograph has."""
    emoji = open_dataset("emoji")
    draw = np.random.default_rng(0)
    for domain in emoji.domains[:DOMAINS]:
        for name in emoji.classes[:4]:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(each):
                width = int(draw.integers(320, 501))
                photo = Image.new("RGB", (width, width * 3 // 4), "white")
                for x in range(0, photo.width, 60):
                    for y in range(0, photo.height, 60):
                        tile = emoji.image(domain, int(draw.integers(emoji.size(domain))))
                        side = int(draw.integers(64, 120))
                        photo.paste(tile.resize((side, side), Image.Resampling.BICUBIC), (x, y))
                photo.save(folder / f"{number:03d}.jpg", quality=90)


def ours(dataset: DomainDataset, steps: int, workers: int) -> Iterable[Batch]:
    return balanced_loader(
        dataset,
        {domain: np.arange(dataset.size(domain)) for domain in dataset.domains[:DOMAINS]},
        batch_per_domain=PER_DOMAIN,
        start=0,
        stop=steps,
        seed=0,
        transform=train_transform(SIZE, HALF, HALF),
        workers=workers,
    )


def torchvisions(root: Path, domains: Iterable[str], steps: int, workers: int) -> Iterable[list[torch.Tensor]]:
    transform = train_transform(SIZE, HALF, HALF)
    pictures = ConcatDataset([ImageFolder(str(root / domain), transform) for domain in domains])
    batch = DOMAINS * PER_DOMAIN
    # As many pictures as are asked for and no more, so that nothing is fetched ahead in vain.
    sampler = RandomSampler(pictures, num_samples=steps * batch)
    return DataLoader(pictures, batch_size=batch, sampler=sampler, num_workers=workers)


def drained(loader: Iterable[object]) -> Callable[[], None]:
    """Going through the whole loader, as a call."""

    def run() -> None:
        for _ in loader:
            continue

    return run


def inverted(ratio: Ratio) -> str:
    """The ratio of speeds that belongs to a ratio of seconds."""
    return f"{1 / ratio.median:.3f} [{1 / ratio.high:.3f}, {1 / ratio.low:.3f}]"


def waiting(dataset: DomainDataset, backbone: str, workers: int, steps: int, device: torch.device) -> tuple[str, float]:
    """The share of a step spent waiting for its batch, as text with its interval, and the median step in seconds."""
    torch.manual_seed(0)
    model = build_classifier(backbone, len(dataset.classes), pretrained=False).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    warmup = 3
    batches = iter(ours(dataset, steps + warmup, workers))
    waits, totals = [], []
    for step in range(steps + warmup):
        start = time.perf_counter()
        batch = next(batches)
        arrived = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(model(batch.x.to(device)), batch.y.to(device)).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step >= warmup:
            waits.append(arrived - start)
            totals.append(time.perf_counter() - start)
    shares = np.array(waits) / np.array(totals)
    interval = bootstrap((shares,), np.median, n_resamples=5000, rng=0, method="percentile").confidence_interval
    return f"{np.median(shares):.1%} [{interval.low:.1%}, {interval.high:.1%}]", float(np.median(totals))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="measure on these pictures instead of mosaics")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--batches", type=int, default=8, help="batches of 48 a measurement")
    parser.add_argument("--steps", type=int, default=30, help="training steps a share is taken over")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.folder or Path(scratch) / "photos"
        if arguments.folder is None:
            make_photos(root, each=40)
        photos = ImageFolders(root)
        photos.verify()
        files = [root / file for file in photos.files()]
        size = sum(file.stat().st_size for file in files) / len(files) / 1000
        print(f"`{shlex.join(['python', *sys.argv])}`\n\n{setting('torchvision', 'pillow', 'timm')}")
        print(f"load average before the start {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        print(
            f"{len(files)} files, {size:.0f} kB on average, to {SIZE} × {SIZE}, batches of {DOMAINS} × {PER_DOMAIN}\n"
        )
        print("| workers | steppe / torchvision, pictures a second [95 %] | steppe | torchvision | pairs |")
        print("| --- | --- | --- | --- | --- |")
        for workers in arguments.workers:
            ratio = interleaved(
                drained(ours(photos, arguments.batches, workers)),
                drained(torchvisions(root, photos.domains[:DOMAINS], arguments.batches, workers)),
                pairs=arguments.pairs,
            )
            pictures = arguments.batches * DOMAINS * PER_DOMAIN
            speeds = " | ".join(f"{pictures / seconds:.0f}" for seconds in (ratio.a_median, ratio.b_median))
            print(f"| {workers} | {inverted(ratio)} | {speeds} | {ratio.pairs} |", flush=True)
        print("\n| backbone | data | workers | waiting for data [95 %] | step, s |\n| --- | --- | --- | --- | --- |")
        for backbone in ("resnet18", "efficientnet_lite0"):
            for name, dataset in (("JPEGs", photos), ("EmojiStyles", open_dataset("emoji"))):
                for workers in arguments.workers:
                    share, seconds = waiting(dataset, backbone, workers, arguments.steps, device)
                    print(f"| {backbone} | {name} | {workers} | {share} | {seconds:.3f} |", flush=True)


if __name__ == "__main__":
    main()
