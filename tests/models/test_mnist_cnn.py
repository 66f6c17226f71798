"""DomainBed's network for MNIST: its layers, its initial weights, what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from steppe.errors import SteppeError
from steppe.models import backbone_names, build_classifier, check_backbone, has_batch_norm, takes_channels
from steppe.models.backbones import build_backbone
from steppe.models.mnist_cnn import MnistCNN


def by_the_book(x: Tensor, parameters: list[Tensor]) -> Tensor:
    """The published forward pass: four convolutions, each followed by ReLU and then GroupNorm of eight groups."""
    for layer, stride in enumerate((1, 2, 1, 1)):
        kernel, bias, gain, offset = parameters[4 * layer : 4 * layer + 4]
        x = F.conv2d(x, kernel, bias, stride=stride, padding=1).relu()
        groups = x.reshape(len(x), 8, -1)
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        x = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
        x = x * gain[:, None, None] + offset[:, None, None]
    return x.mean(dim=(2, 3))


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (2, 28), (3, 17)])
def test_features_are_those_of_the_published_layers(channels: int, size: int) -> None:
    network = MnistCNN(channels).double()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # gains and offsets that matter
    x = torch.rand(3, channels, size, size, dtype=torch.float64)
    features = network(x)
    assert features.shape == (3, 128)
    torch.testing.assert_close(features, by_the_book(x, list(network.parameters())))


def test_initial_weights_are_drawn_in_the_published_order() -> None:
    torch.manual_seed(3)
    shapes = [(2, 64), (64, 128), (128, 128), (128, 128)]
    convolutions = [nn.Conv2d(inputs, outputs, 3) for inputs, outputs in shapes]
    head = nn.Linear(128, 5)
    torch.manual_seed(3)
    model = build_classifier("mnist_cnn", 5, channels=2)
    ours = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)]
    for expected, found in zip([*convolutions, head], [*ours, model.head], strict=True):
        assert torch.equal(found.weight, expected.weight)
        assert torch.equal(found.bias, expected.bias)
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [(8, 64), (8, 128), (8, 128), (8, 128)]
    assert not has_batch_norm(model)


@pytest.mark.parametrize(("channels", "parameters"), [(1, 371_850), (3, 373_002)])
def test_the_number_of_parameters(channels: int, parameters: int) -> None:
    model = build_classifier("mnist_cnn", 10, channels=channels)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert (model.mean, model.std) == ((0.0,) * channels, (1.0,) * channels), "pictures are taken as they are"


def test_it_is_a_backbone_like_others(tmp_path: Path) -> None:
    assert backbone_names()[1] == "mnist_cnn"
    check_backbone("mnist_cnn")
    first = build_classifier("mnist_cnn", 10, pretrained=True, frozen_batch_norm=True, image_size=28, channels=1)
    assert first.training
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(9)
    second = build_classifier("mnist_cnn", 2, weights=tmp_path / "model.safetensors", channels=1)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(second.features(x), first.features(x))
    with pytest.raises(SteppeError, match=r"model\.safetensors do not fit mnist_cnn: 1 of another shape"):
        build_classifier("mnist_cnn", 2, weights=tmp_path / "model.safetensors", channels=2)


def test_channels_that_a_backbone_does_not_take() -> None:
    assert takes_channels("mnist_cnn", 1)
    assert takes_channels("test_resnet", 3)
    assert not takes_channels("test_resnet", 2)
    for name in ("test_resnet", "efficientnet_lite0"):
        with pytest.raises(SteppeError, match=f"{name} takes pictures of 3 channels, not 2; 'mnist_cnn' takes any"):
            build_backbone(name, pretrained=False, channels=2)


def test_gradients_reach_every_parameter() -> None:
    model = build_classifier("mnist_cnn", 10, channels=1).to(memory_format=torch.channels_last)
    F.cross_entropy(model(torch.rand(4, 1, 28, 28)), torch.arange(4)).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
