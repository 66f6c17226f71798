"""How quickly pictures arrive: out of the cache, beside DomainBed's loader, and as a share of a training step.

    git clone https://github.com/facebookresearch/DomainBed ../DomainBed
    python benchmarks/input_pipeline.py --domainbed ../DomainBed       # on the CPU, some twenty minutes on two cores
    python benchmarks/input_pipeline.py --tables steps --device cuda
    python benchmarks/input_pipeline.py --folder PHOTOS                # your own root/<domain>/<class>/<pictures>

Four tables (``--tables``); a ratio is the median of interleaved pairs with its 95 % interval, above 1 where steppe,
or the cache, is quicker:

``reads``: pictures a second, all in memory: out of the cache over decoded from their files (read, JPEG decoder, RGB),
both as Pillow's pictures; out of the cache as an array (a copy of it; the training loader takes its parts), over the
same; and out of a cache that was opened this moment, so that every checksum is looked at, over the same.

``loaders``: pictures a second with DomainBed's augmentation to 224 × 224, steppe's loader over DomainBed's own (its
public code, from the checkout that ``--domainbed`` names), on the same folder, as many pictures a domain and batch,
in the steady state: workers run and a first part of the batches is taken before the clock starts. DomainBed has 8
workers a domain; it is measured with fewer too, because so many are not what two cores would choose. Without
``--domainbed`` steppe is measured against torchvision's ImageFolder in one DataLoader.

``steps``: the share of a training step (ERM, AdamW) spent waiting for the next batch: median over steps and its 95 %
interval. With ``--device cuda`` with the augmentation on the host and on the device.

``ways``: how far the pictures of the two augmentations are apart, the device's (float32) less the host's (8 bits), in
levels of 255: mean, mean of the absolute values, the same of the worst picture, and what 99 % stay below.

Unless ``--folder`` is given the pictures are those of photographs.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from domainbed_loader import minibatches
from measure import Ratio, interleaved, setting
from photographs import make_photographs
from scipy.stats import bootstrap
from torch.nn.functional import cross_entropy
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler
from torchvision.datasets import ImageFolder

from steppe.data import (
    Batch,
    CacheOptions,
    DeviceAugmentation,
    DomainDataset,
    ImageFolders,
    balanced_loader,
    decoded_pictures,
    open_dataset,
    raw_loader,
    train_transform,
)
from steppe.data.decoded import DecodedPictures
from steppe.models import build_classifier

SIZE, PER_DOMAIN, DOMAINS = 224, 32, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS_SIZE, STEPS_PER_DOMAIN = 112, 16
TABLES = ("reads", "loaders", "steps", "ways")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--folder", type=Path, help="measure on these pictures, of three domains and more")
    parser.add_argument("--pictures", type=int, default=2000, help="how many are made where no folder is given")
    parser.add_argument("--domainbed", type=Path, help="checkout of facebookresearch/DomainBed")
    parser.add_argument("--domainbed-workers", type=int, nargs="+", default=[8, 1], help="of each of its domains")
    parser.add_argument("--workers", type=int, default=2, help="steppe's, for all domains")
    parser.add_argument("--device", default="cpu", help="of the training steps")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--batches", type=int, default=16, help="timed in a measurement, after half as many")
    parser.add_argument("--steps", type=int, default=30, help="training steps a share is taken over")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.folder or make_photographs(Path(scratch) / "photographs", arguments.pictures)
        photos = ImageFolders(root)
        cached = decoded_pictures(photos, CacheOptions("on"), say=lambda line: print(line, file=sys.stderr))
        files = [root / file for file in photos.files()]
        size = sum(file.stat().st_size for file in files) / len(files) / 1000
        print(f"`{shlex.join(['python', *sys.argv])}`\n\n{setting('torchvision', 'pillow', 'timm')}")
        print(f"load average before the start {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"{len(files)} files, {size:.0f} kB on average")
        if "reads" in arguments.tables:
            reads(photos, arguments.pairs)
        if "loaders" in arguments.tables:
            loaders(photos, cached, arguments)
        if "steps" in arguments.tables:
            steps(photos, cached, arguments)
        if "ways" in arguments.tables:
            ways({"photographs": (photos, SIZE), "EmojiStyles": (open_dataset("emoji"), STEPS_SIZE)}, arguments)


# --- reads ---


def reads(photos: ImageFolders, pairs: int) -> None:
    """The first table."""
    draw = np.random.default_rng(0)
    everything = [(domain, index) for domain in photos.domains for index in range(photos.size(domain))]
    chosen = [everything[i] for i in draw.permutation(len(everything))[:200]]

    def reading(read: Callable[[str, int], object]) -> Callable[[], None]:
        def run() -> None:
            for domain, index in chosen:
                read(domain, index)

        return run

    def anew() -> float:
        opened = decoded_pictures(photos, CacheOptions("on"))
        start = time.perf_counter()
        reading(opened.image)()
        return time.perf_counter() - start

    cached = decoded_pictures(photos, CacheOptions("on"))
    assert isinstance(cached, DecodedPictures)
    print("\n| read as | cache / decoding, pictures a second [95 %] | cache | decoding | pairs |")
    print("| --- | --- | --- | --- | --- |")
    ways = {
        "picture": reading(cached.image),
        "array": reading(lambda domain, index: np.array(cached.pixels(domain, index))),
        "picture, for the first time": anew,
    }
    for name, way in ways.items():
        print(f"| {name} | {speeds(interleaved(way, reading(photos.image), pairs=pairs), len(chosen))} |", flush=True)


# --- loaders ---


def loaders(photos: ImageFolders, cached: DomainDataset, arguments: argparse.Namespace) -> None:
    """The second table."""
    timed, before = arguments.batches, arguments.batches // 2
    rivals: dict[str, Callable[[], Iterator[object]]] = {}
    if arguments.domainbed:
        for count in arguments.domainbed_workers:
            rivals[f"DomainBed, {count} workers a domain"] = lambda count=count: minibatches(
                arguments.domainbed, photos.root, batch_per_domain=PER_DOMAIN, workers=count, domains=DOMAINS
            )
    else:
        # Fetches as many batches ahead as steppe's loader, and like that one comes to no end while it is measured.
        rivals["torchvision"] = lambda: iter(torchvisions(photos, 4 * (timed + before), arguments.workers))
    ours = {"with the cache": cached, "decoding": photos}
    print(f"\nbatches of {DOMAINS} × {PER_DOMAIN}, {SIZE} × {SIZE}; steppe with {arguments.workers} workers\n")
    print("| steppe | rival | steppe / rival, pictures a second [95 %] | steppe | rival | pairs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (name, dataset), (rival, batches) in itertools.product(ours.items(), rivals.items()):
        ratio = interleaved(
            flowing(
                lambda dataset=dataset: iter(ours_of(dataset, 4 * (timed + before), arguments.workers)), before, timed
            ),
            flowing(batches, before, timed),
            pairs=arguments.pairs,
            warmup=1,
        )
        print(f"| {name} | {rival} | {speeds(ratio, timed * DOMAINS * PER_DOMAIN)} |", flush=True)


def flowing(begin: Callable[[], Iterator[object]], before: int, timed: int) -> Callable[[], float]:
    """Seconds that ``timed`` batches take of a stream from which ``before`` have been taken."""

    def run() -> float:
        stream = begin()
        for _ in range(before):
            next(stream)
        start = time.perf_counter()
        for _ in range(timed):
            next(stream)
        return time.perf_counter() - start  # then the stream goes, and its workers with it

    return run


def ours_of(
    dataset: DomainDataset, count: int, workers: int, size: int = SIZE, per_domain: int = PER_DOMAIN
) -> Iterable[Batch]:
    return balanced_loader(
        dataset,
        sources(dataset),
        batch_per_domain=per_domain,
        start=0,
        stop=count,
        seed=0,
        transform=train_transform(size, MEAN, STD),
        workers=workers,
    )


def sources(dataset: DomainDataset) -> dict[str, np.ndarray]:
    return {domain: np.arange(dataset.size(domain)) for domain in dataset.domains[:DOMAINS]}


def torchvisions(photos: ImageFolders, count: int, workers: int) -> Iterable[object]:
    transform = train_transform(SIZE, MEAN, STD)
    pictures = ConcatDataset([ImageFolder(str(photos.root / domain), transform) for domain in photos.domains[:DOMAINS]])
    batch = DOMAINS * PER_DOMAIN
    sampler = RandomSampler(pictures, replacement=True, num_samples=count * batch)
    return DataLoader(pictures, batch_size=batch, sampler=sampler, num_workers=workers)


def speeds(ratio: Ratio, pictures: int) -> str:
    """The ratio of speeds that belongs to a ratio of seconds, both speeds, and the number of pairs."""
    inverted = f"{1 / ratio.median:.2f} [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"
    return f"{inverted} | {pictures / ratio.a_median:.0f} | {pictures / ratio.b_median:.0f} | {ratio.pairs}"


# --- steps ---


def steps(photos: ImageFolders, cached: DomainDataset, arguments: argparse.Namespace) -> None:
    """The third table."""
    for domain in cached.domains:  # so that every checksum has been looked at, as after a run's first pass
        for index in range(cached.size(domain)):
            cached.image(domain, index)
    device = torch.device(arguments.device)
    places = ("host",) if device.type == "cpu" else ("host", "device")
    print(f"\ntraining on {device}, batches of {DOMAINS} × {STEPS_PER_DOMAIN}, {STEPS_SIZE} × {STEPS_SIZE}\n")
    print("| backbone | pictures | augmented on | workers | waiting for data [95 %] | step, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for backbone in ("resnet18", "efficientnet_lite0"):
        for name, dataset in (("decoded at every use", photos), ("out of the cache", cached)):
            for place, workers in itertools.product(places, sorted({0, arguments.workers})):
                share, seconds = waiting(dataset, backbone, place, workers, arguments.steps, device)
                print(f"| {backbone} | {name} | {place} | {workers} | {share} | {seconds:.3f} |", flush=True)


def waiting(
    dataset: DomainDataset, backbone: str, place: str, workers: int, count: int, device: torch.device
) -> tuple[str, float]:
    """The share of a step spent waiting for its batch, as text with its interval, and the median step in seconds."""
    torch.manual_seed(0)
    model = build_classifier(backbone, len(dataset.classes), pretrained=False).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    warmup = 3
    batches = iter(batches_of(dataset, place, workers, count + warmup, device))
    waits, totals = [], []
    for step in range(count + warmup):
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


def batches_of(
    dataset: DomainDataset, place: str, workers: int, count: int, device: torch.device, size: int = STEPS_SIZE
) -> Iterable[Batch]:
    if place == "host":
        return ours_of(dataset, count, workers, size, STEPS_PER_DOMAIN)
    raw = raw_loader(
        dataset,
        sources(dataset),
        batch_per_domain=STEPS_PER_DOMAIN,
        start=0,
        stop=count,
        seed=0,
        transform=train_transform(size, MEAN, STD),
        workers=workers,
    )
    return map(DeviceAugmentation(size, MEAN, STD, device), raw)


# --- ways ---


def ways(sets: dict[str, tuple[DomainDataset, int]], arguments: argparse.Namespace) -> None:
    """The fourth table."""
    device = torch.device(arguments.device)
    print("\n| pictures | size | number | mean | mean, absolute | worst picture | 99 % below |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (dataset, size) in sets.items():
        both = [batches_of(dataset, place, 0, 2, device, size) for place in ("device", "host")]
        scale = 255 * torch.tensor(STD)[:, None, None]
        levels = torch.cat([(a.x.cpu() - b.x) * scale for a, b in zip(*both, strict=True)]).flatten(1).numpy()
        far = np.abs(levels)
        figures = (levels.mean(), far.mean(), far.mean(1).max(), np.quantile(far, 0.99))
        print(f"| {name} | {size} | {len(levels)} | {' | '.join(f'{figure:.2f}' for figure in figures)} |", flush=True)


if __name__ == "__main__":
    main()
