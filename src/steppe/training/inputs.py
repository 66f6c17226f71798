"""From a data set's samples to the network's input: pictures are augmented, tensors are used as they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steppe.data.decoded import decoded_pictures
from steppe.data.decoded_places import CacheOptions
from steppe.data.device_augmentation import DeviceAugmentation, raw_loader
from steppe.data.domains import DomainDataset, Indices
from steppe.data.loader import Batch, balanced_loader, evaluation_loader
from steppe.data.slots import Part
from steppe.data.splits import Splits, make_splits
from steppe.data.tensors import TensorDomains
from steppe.data.transforms import TensorTransform, Transform, eval_transform, tensor_transform, train_transform
from steppe.errors import SteppeError
from steppe.models import Classifier, takes_channels
from steppe.training.config import PLAIN_BACKBONE, RunConfig, Settings
from steppe.training.machine import Machine
from steppe.training.progress import Report

RGB = 3

EVALUATION_BATCH = 64
"""Pictures in a batch of an evaluation: DomainBed's. Fixed, because it may change the last bits of a loss."""

AUGMENTED = {"host": "host, 8 bits (Pillow)", "device": "device, float32", None: "none"}
"""What a run says about where its training pictures were augmented."""

_latest: tuple[DomainDataset, CacheOptions, DomainDataset] | None = None


def splits_of(dataset: DomainDataset, config: RunConfig) -> Splits:
    """Which pictures a run trains on, selects by and is asked about.

    Raises:
        SteppeError: see :func:`~steppe.data.splits.make_splits`.
    """
    return make_splits(
        dataset,
        config.held_out,
        validation_domain=config.validation_domain,
        protocol=config.split,
        trial_seed=config.seed,
        holdout=config.holdout,
    )


class Inputs:
    """How the pictures of a run reach its network: out of a cache or decoded, augmented here or on the device.

    Args:
        dataset: what the run is about.
        config: size and number of the pictures.
        machine: whether decoded pictures are kept, where they are augmented, how many processes load them.
        device: where the network is.
        report: told while pictures are decoded.
    """

    def __init__(
        self, dataset: DomainDataset, config: RunConfig, machine: Machine, device: torch.device, report: Report
    ) -> None:
        self._dataset = kept_decoded(dataset, machine, report)
        self._config, self._machine, self._device = config, machine, device
        where = None if isinstance(dataset, TensorDomains) else machine.augments_on(device)
        self._on_device = where == "device"
        self.augmentation = [AUGMENTED[where]]
        """Where the training pictures of this run were augmented: in turn, if it was stopped and went on elsewhere."""

    def resumed(self, augmentation: Sequence[str]) -> None:
        """The run began with this ``augmentation``."""
        here = self.augmentation[-1]
        self.augmentation = [*augmentation, *([] if here in augmentation[-1:] else [here])]

    def training(
        self,
        train: Mapping[str, Indices],
        model: Classifier,
        start: int,
        stop: int,
        part: Part = Part(),  # noqa: B008 - immutable
    ) -> Iterable[Batch]:
        """The batches of steps ``start`` to ``stop - 1``; see :func:`~steppe.data.loader.balanced_loader`."""
        size = self._config.image_size
        common = {"batch_per_domain": self._config.batch_per_domain, "start": start, "stop": stop}
        workers = self._machine.loader_workers(self._device)
        numbers: dict[str, Any] = {**common, "seed": self._config.seed, "workers": workers, "part": part}
        if self._on_device:
            drawing = train_transform(size, model.mean, model.std)
            finish = DeviceAugmentation(size, model.mean, model.std, self._device)
            return map(finish, raw_loader(self._dataset, train, transform=drawing, **numbers))
        transform = input_transform(self._dataset, model, size, augment=True)
        return balanced_loader(self._dataset, train, transform=transform, **numbers)

    def evaluation(self, domain: str, indices: Indices, model: Classifier) -> Iterable[tuple[Tensor, Tensor]]:
        """The pictures in order, as they are; see :func:`~steppe.data.loader.evaluation_loader`."""
        # A process takes longer to start than a few batches take to load.
        helpers = min(self._machine.loader_workers(self._device), len(indices) // (8 * EVALUATION_BATCH))
        transform = input_transform(self._dataset, model, self._config.image_size, augment=False)
        return evaluation_loader(
            self._dataset, domain, indices, batch_size=EVALUATION_BATCH, transform=transform, workers=helpers
        )


def kept_decoded(dataset: DomainDataset, machine: Machine, report: Report) -> DomainDataset:
    """``dataset`` out of its cache of decoded pictures, which one run after the other on it need not open again.

    A bar shows how far it is where the cache has to be built.
    """
    global _latest
    options = CacheOptions(machine.cache, machine.cache_gb, machine.cache_memory_gb)
    if _latest is not None and _latest[0] is dataset and _latest[1] == options:
        return _latest[2]
    begun = False

    def progress(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            report.begin(f"decoding {dataset.name}", step=done, total=total)
            begun = True
        report.advance(done, math.nan)

    kept = decoded_pictures(dataset, options, say=report.say, progress=progress)
    _latest = dataset, options, kept
    return kept


def check_inputs(dataset: DomainDataset, settings: Settings) -> None:
    """Raises SteppeError where the data set cannot be fed to the network; it names the settings with which it can.

    Tensors are not resized, so ``image_size`` has to be theirs.
    """
    if isinstance(dataset, TensorDomains) and dataset.shape[1:] != (settings.image_size, settings.image_size):
        channels, height, width = dataset.shape
        raise SteppeError(
            f"{dataset.name!r} consists of tensors, {channels} × {height} × {width}, which are used as they are: set "
            f"image_size to {height}, and backbone to {PLAIN_BACKBONE}, DomainBed's for it "
            f"(--backbone {PLAIN_BACKBONE} --image-size {height})"
        )


def input_channels(dataset: DomainDataset, backbone: str) -> int:
    """Three for pictures; for tensors as many as they have, where the backbone can be built for them, else three."""
    own = dataset.shape[0] if isinstance(dataset, TensorDomains) else RGB
    return own if takes_channels(backbone, own) else RGB


def input_transform(
    dataset: DomainDataset, model: Classifier, size: int, *, augment: bool
) -> Transform | TensorTransform:
    """What the loaders do with the samples of ``dataset`` on their way to ``model``.

    Args:
        size: the side of pictures, in pixels.
        augment: whether pictures are augmented, for training. Tensors are not: nor does DomainBed.
    """
    if isinstance(dataset, TensorDomains):
        return tensor_transform(model.mean, model.std)
    return (train_transform if augment else eval_transform)(size, model.mean, model.std)
