"""A classifier: a backbone, dropout, and one linear layer, as DomainBed builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steppe.errors import SteppeError
from steppe.models.backbones import RGB, backbone_names, build_backbone, feature_count, normalisation

__all__ = ["Classifier", "backbone_names", "build_classifier"]


class Classifier(nn.Module):
    """logits = W·dropout(features(x)) + b, with `torch.nn.Linear`'s initial W and b (as in DomainBed).

    Args:
        backbone: maps [B, C, S, S] to pooled features [B, F]; C = 3 for pictures in colour.
        features: F.
        num_classes: K.
        mean, std: per channel, of pictures in [0, 1]: what the input is to be normalised by beforehand.
        dropout: probability of a feature being dropped before the head, in training.
        frozen_batch_norm: keep every BatchNorm in evaluation mode during training: it normalises with, and
            never updates, the running statistics it came with, while its affine parameters are trained
            (DomainBed's ``freeze_bn``).
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        num_classes: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dropout: float = 0.0,
        frozen_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, num_classes)
        self.mean = mean
        self.std = std
        self.frozen_batch_norm = frozen_batch_norm
        self.train()

    def features(self, x: Tensor) -> Tensor:
        """Pooled features [B, F] of normalised pictures [B, C, S, S]."""
        features: Tensor = self.backbone(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of normalised pictures [B, C, S, S]."""
        logits: Tensor = self.head(self.dropout(self.features(x)))
        return logits

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; frozen BatchNorm layers stay in evaluation mode in both."""
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any layer normalises by the statistics of a batch."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def build_classifier(
    backbone: str,
    num_classes: int,
    *,
    pretrained: bool = True,
    dropout: float = 0.0,
    frozen_batch_norm: bool = False,
    weights: Path | None = None,
    image_size: int | None = None,
    channels: int = RGB,
) -> Classifier:
    """The classifier with the backbone of that name; torch's seed determines all that is random in it.

    Args:
        backbone: ``efficientnet_lite0``, whose ImageNet weights come with an installed package, ``mnist_cnn``,
            DomainBed's for MNIST, which starts from random ones, or any timm name (`backbone_names`).
        num_classes: K, at least 1.
        pretrained: start from the backbone's published weights.
        dropout: in [0, 1), before the head.
        frozen_batch_norm: see `Classifier`.
        weights: a local checkpoint for the backbone, instead of the published weights.
        image_size: side of the pictures in pixels; needed by backbones built for one size when it is another.
        channels: C, three for pictures in colour; ``mnist_cnn`` takes any number.

    Raises:
        SteppeError: an argument out of range; an unknown backbone (with near matches); weights that cannot be
            had or do not fit (with what to do).
    """
    if num_classes < 1:
        raise SteppeError(f"a classifier needs at least one class, not {num_classes}")
    if not 0.0 <= dropout < 1.0:
        raise SteppeError(f"dropout must be at least 0 and below 1, not {dropout}")
    network = build_backbone(backbone, pretrained=pretrained, weights=weights, image_size=image_size, channels=channels)
    mean, std = normalisation(network)
    return Classifier(
        network,
        feature_count(network),
        num_classes,
        mean=mean,
        std=std,
        dropout=dropout,
        frozen_batch_norm=frozen_batch_norm,
    )
