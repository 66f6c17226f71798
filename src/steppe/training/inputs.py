"""From a data set's samples to the network's input: pictures are augmented, tensors are used as they are."""

from __future__ import annotations

from steppe.data.domains import DomainDataset
from steppe.data.tensors import TensorDomains
from steppe.data.transforms import TensorTransform, Transform, eval_transform, tensor_transform, train_transform
from steppe.errors import SteppeError
from steppe.models import Classifier, takes_channels
from steppe.training.config import PLAIN_BACKBONE, Settings

RGB = 3


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
