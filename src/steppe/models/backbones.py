"""Backbones by name: timm's, EfficientNet-Lite0 whose weights need no model hub, and DomainBed's network for MNIST.

A backbone maps [B, 3, S, S] to pooled features [B, F] (``num_classes=0`` in timm's terms); DomainBed's takes any number
of channels.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from steppe.errors import SteppeError, unknown_name
from steppe.models.efficientnet_lite import efficientnet_lite0
from steppe.models.mnist_cnn import MNIST_CNN, MnistCNN

EMBEDDED = "efficientnet_lite0"
OWN = (EMBEDDED, MNIST_CNN)
RGB = 3

# timm's own marks for a model that is described outside its registry.
_SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")


def backbone_names() -> tuple[str, ...]:
    """The names `build_backbone` knows, the embedded one first, then ``mnist_cnn`` and timm's.

    timm's pre-training tags (``resnet50.a1_in1k``) and its sources (``hf-hub:owner/name``,
    ``local-dir:folder``) may be used too. ``efficientnet_lite0`` is the embedded network; timm's own of that
    name is ``efficientnet_lite0.ra_in1k``.
    """
    return (*OWN, *(name for name in timm.list_models() if name not in OWN))


def build_backbone(
    name: str,
    *,
    pretrained: bool = True,
    weights: Path | None = None,
    image_size: int | None = None,
    channels: int = RGB,
) -> nn.Module:
    """The backbone called ``name``, without a classifier.

    Args:
        name: one of `backbone_names`, or a timm name with a tag or a source.
        pretrained: fill it with its published weights: from the installed package for ``efficientnet_lite0``,
            from timm's model hub (or its local cache) otherwise; ``mnist_cnn`` has none and starts from random ones.
        weights: fill it from this file instead (see `load_weights`); ``pretrained`` is then without effect.
        image_size: the side of the pictures in pixels, for networks built for one size (most transformers);
            ignored by networks that take any size.
        channels: of the pictures; all but ``mnist_cnn`` take three.

    Raises:
        SteppeError: an unknown name or tag; another number of channels than it takes; weights that cannot be had; a
            ``weights`` file that does not fit.
    """
    check_backbone(name)
    if not takes_channels(name, channels):
        raise SteppeError(f"{name} takes pictures of {RGB} channels, not {channels}; {MNIST_CNN!r} takes any number")
    download = pretrained and weights is None
    if name == MNIST_CNN:
        backbone: nn.Module = MnistCNN(channels)
    elif name == EMBEDDED:
        backbone = efficientnet_lite0(pretrained=download)
    else:
        backbone = _from_timm(name, pretrained=download, image_size=image_size)
    if weights is not None:
        load_weights(backbone, weights)
    return backbone


def takes_channels(name: str, channels: int) -> bool:
    """Whether the backbone of that name can be built for pictures of so many channels."""
    return name == MNIST_CNN or channels == RGB


def check_backbone(name: str) -> None:
    """Raises SteppeError, with near matches, for a name or a tag that is not known; sources are not looked at."""
    if name in OWN or name.startswith(_SOURCES):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = backbone_names()
        if difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5):
            raise unknown_name("backbone", name, known)
        raise SteppeError(
            f"unknown backbone {name!r}; {EMBEDDED!r} or any of timm's {len(known)} models will do "
            "(steppe.models.backbone_names() lists them)"
        )
    tags = [full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise unknown_name(f"pre-trained weights of {architecture}", tag, [t for t in tags if t] or ["none"])


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Fill ``backbone`` from a file: every tensor must be there, none may be left over.

    The file is ``.safetensors``, or a PyTorch checkpoint that holds nothing but weights and plain containers.
    It may be timm's (its classifier is left out), or a `Classifier` saved by a run (of which the part under
    ``backbone.`` is taken).

    Raises:
        SteppeError: the file is missing or unreadable, or belongs to another network.
    """
    path = Path(path)
    if not path.is_file():
        raise SteppeError(f"no file of weights at {path}")
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # a damaged file surfaces as any of a dozen types, depending on where it is damaged
        raise SteppeError(f"cannot read weights from {path}: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise SteppeError(f"{path} does not hold a state dict (names and tensors)")

    if any(key.startswith("backbone.") for key in state):
        state = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    else:
        classifiers = _classifier_prefixes(backbone)
        state = {key: tensor for key, tensor in state.items() if not key.startswith(classifiers)}
    differences = _differences(backbone.state_dict(), state)
    if differences:
        architecture = _config(backbone).get("architecture", type(backbone).__name__)
        raise SteppeError(f"the weights in {path} do not fit {architecture}: {differences}")
    backbone.load_state_dict(state, strict=True)


def normalisation(backbone: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, deviation) per channel of pictures in [0, 1] that the backbone's published weights expect."""
    config = _config(backbone)
    return tuple(config["mean"]), tuple(config["std"])


def feature_count(backbone: nn.Module) -> int:
    """F, the width of the pooled features (which some networks project after pooling)."""
    return cast(int, getattr(backbone, "head_hidden_size", None) or backbone.num_features)


def _from_timm(name: str, *, pretrained: bool, image_size: int | None) -> nn.Module:
    size: dict[str, Any] = {}
    if image_size is not None and not name.startswith(_SOURCES):
        config = get_pretrained_cfg(name)
        if config is not None and config.fixed_input_size:
            size["img_size"] = image_size
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **size)
    except OSError as error:  # what the hub's client raises for a missing network, file or permission
        raise SteppeError(
            f"cannot get the backbone {name} from timm's model hub ({_in_short(error)}); "
            f"without a connection, use {EMBEDDED!r} (its weights come with a package), "
            "weights from a local checkpoint, or pretrained=False (--no-pretrained) for random weights"
        ) from error
    except RuntimeError as error:
        if "No pretrained weights exist" not in str(error):
            raise
        raise SteppeError(
            f"timm has no pre-trained weights for {name}; use another backbone, weights from a local "
            "checkpoint, or pretrained=False (--no-pretrained) for random weights"
        ) from error
    return backbone


def _in_short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _config(backbone: nn.Module) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], backbone.pretrained_cfg)


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What keeps ``given`` from being loaded as ``expected``, in one line; empty when nothing does."""
    kinds = {
        "missing": expected.keys() - given.keys(),
        "not part of it": given.keys() - expected.keys(),
        "of another shape": {k for k in expected.keys() & given.keys() if expected[k].shape != given[k].shape},
    }
    return "; ".join(
        f"{len(keys)} {kind} ({', '.join(sorted(keys)[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    )


def _classifier_prefixes(backbone: nn.Module) -> tuple[str, ...]:
    names = _config(backbone).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
