"""What the experiment trains and tests on: tensors in memory, one domain held out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from steppe.data import open_dataset
from steppe.data.splits import make_splits
from steppe.data.tensors import TensorDomains
from steppe.models import build_classifier, takes_channels
from steppe.models.backbones import EMBEDDED

Batches = list[tuple[Tensor, Tensor]]
EVALUATION_BATCH = 128


@dataclass
class Pictures:
    """One data set, split for one seed.

    Attributes:
        train: source domain → pictures and labels.
        validation: pictures of the source domains that are not trained on.
        answer: pictures of the held-out domain.
        network: makes the network, new at each call; torch's seed decides on what is random in it.
        augment: whether training pictures are shifted, scaled and mirrored.
    """

    train: dict[str, tuple[Tensor, Tensor]]
    validation: Batches
    answer: Batches
    classes: int
    backbone: str
    augment: bool

    def network(self) -> nn.Module:
        embedded = self.backbone == EMBEDDED  # its ImageNet weights come with a package; others start from random ones
        channels = self.answer[0][0].shape[1]
        model = build_classifier(self.backbone, self.classes, channels=channels, pretrained=embedded)
        return model.to(memory_format=torch.channels_last)

    def batch(self, per_domain: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures of every source domain, drawn with replacement."""
        drawn = []
        for x, y in self.train.values():
            rows = torch.randint(len(y), (per_domain,), generator=generator)
            drawn.append((x[rows], y[rows]))
        x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return (_augmented(x, generator) if self.augment else x), y


@lru_cache(maxsize=1)  # the runs of a seed come one after the other
def load(name: str, held_out: str, seed: int, *, size: int, most: int, backbone: str | None = None) -> Pictures:
    """The data set ``name`` without ``held_out``.

    Args:
        name: ``emoji``, ``emoji-full`` or ``rotated-mnist``.
        held_out: the domain that is tested on.
        seed: decides on the split.
        size: side of the emoji pictures in pixels.
        most: at most so many pictures are evaluated of each part.
        backbone: the network; by default EfficientNet-Lite0 for drawings, and for digits timm's small ``test_resnet``.
            (``mnist_cnn``, DomainBed's for digits, is at 40 % after some hundred steps of SGD.)
    """
    dataset = open_dataset(name)
    emoji = name.startswith("emoji")
    backbone = backbone or (EMBEDDED if emoji else "test_resnet")
    splits = make_splits(dataset, held_out, protocol="strict" if emoji else "domainbed", trial_seed=seed)

    def tensors(domain: str, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        if isinstance(dataset, TensorDomains):
            x, y = dataset.tensors(domain, rows)
            grey = x.shape[1] == 1 and not takes_channels(backbone, 1)
            return (x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last) if grey else x), y
        labels = torch.from_numpy(np.asarray(dataset.labels(domain))[rows])
        pictures = [np.asarray(dataset.image(domain, int(row)).resize((size, size))) for row in rows]
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
        return (x / 127.5 - 1).contiguous(memory_format=torch.channels_last), labels  # (x − 0.5) / 0.5

    def batches(parts: list[tuple[str, np.ndarray]]) -> Batches:
        drawn = np.random.default_rng(seed)
        share = most // len(parts)
        found = [tensors(domain, np.sort(drawn.permutation(rows)[:share])) for domain, rows in parts]
        x, y = (torch.cat(parts) for parts in zip(*found, strict=True))
        return list(zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True))

    return Pictures(
        train={domain: tensors(domain, np.asarray(rows)) for domain, rows in splits.train.items()},
        validation=batches([(domain, np.asarray(rows)) for domain, rows in splits.validation.items()]),
        answer=batches([(held_out, np.asarray(splits.evaluation[held_out][splits.answer]))]),
        classes=len(dataset.classes),
        backbone=backbone,
        augment=emoji,
    )


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture zoomed in on 70 to 100 % of its area at a random place, and mirrored half of the time."""
    n = len(x)
    scale = torch.empty(n).uniform_(0.7, 1.0, generator=generator).sqrt()
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - scale)[:, None]
    mirror = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, shift
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
