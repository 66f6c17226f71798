"""DomainBed's network for MNIST: four convolutions, for pictures of any number of channels and any size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

MNIST_CNN = "mnist_cnn"

_GROUPS = 8
_LAYERS = ((64, 1), (128, 2), (128, 1), (128, 1))  # channels, stride


class MnistCNN(nn.Module):
    """[B, C, S, S] to features [B, 128]; 371,000 parameters for one channel.

    Four times a 3 × 3 convolution, ReLU and GroupNorm of 8 groups, in this order; the convolutions have 64, 128, 128
    and 128 channels and the second a stride of 2; then the mean over the picture (``MNIST_CNN`` in the code of
    Gulrajani & Lopez-Paz, "In Search of Lost Domain Generalization", 2021). Random weights are drawn in the same order
    as there: an equal torch seed gives equal weights. Pictures are taken as they are, in [0, 1].

    Args:
        channels: C.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for outputs, stride in _LAYERS:
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
                nn.ReLU(inplace=True),
                nn.GroupNorm(_GROUPS, outputs),
            ]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = inputs
        # As timm describes its networks.
        self.pretrained_cfg: dict[str, Any] = {
            "architecture": MNIST_CNN,
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
        }

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.pool(self.layers(x))
        return features
