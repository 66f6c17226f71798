"""The classifier: shapes, initialisation, modes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steppe.errors import SteppeError
from steppe.models import Classifier, build_classifier

SMALL = "test_resnet"  # timm's miniature of a residual network, with BatchNorm


def pictures(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(
    ("name", "width"), [("efficientnet_lite0", 1280), ("resnet18", 512), ("mobilenetv3_small_050", 1024)]
)
def test_shapes(name: str, width: int) -> None:
    model = build_classifier(name, 7, pretrained=False).eval()
    x = pictures(2)
    with torch.no_grad():
        features, logits = model.features(x), model(x)
    assert features.shape == (2, width)
    assert logits.shape == (2, 7)
    assert torch.equal(logits, model.head(features))


def test_a_transformer_is_built_for_the_size_of_the_pictures() -> None:
    model = build_classifier("test_vit", 3, pretrained=False, image_size=64)
    assert model(pictures(2, 64)).shape == (2, 3)


def test_a_network_for_any_size_takes_no_notice_of_it() -> None:
    model = build_classifier(SMALL, 3, pretrained=False, image_size=64)
    assert model(pictures(2, 48)).shape == (2, 3)


def test_the_pretrained_backbone_is_the_embedded_one_with_its_normalisation() -> None:
    from steppe.models.efficientnet_lite import imagenet_state_dict

    model = build_classifier("efficientnet_lite0", 10)
    weights = imagenet_state_dict()
    state = model.backbone.state_dict()
    assert set(weights) - set(state) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(tensor, weights[key]) for key, tensor in state.items())
    assert (model.mean, model.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_other_backbones_bring_their_own_normalisation() -> None:
    model = build_classifier("resnet18", 2, pretrained=False)
    assert model.mean == pytest.approx((0.485, 0.456, 0.406))
    assert model.std == pytest.approx((0.229, 0.224, 0.225))


@pytest.mark.parametrize("pretrained", [True, False])
def test_the_same_seed_gives_the_same_model(pretrained: bool) -> None:
    def build(seed: int) -> Classifier:
        torch.manual_seed(seed)
        return build_classifier("efficientnet_lite0", 10, pretrained=pretrained)

    first, again, other = build(3), build(3), build(4)
    for (key, tensor), same in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, same), key
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_head_is_initialised_as_a_linear_layer() -> None:
    torch.manual_seed(0)
    head = build_classifier("efficientnet_lite0", 100, pretrained=False).head
    bound = 1 / math.sqrt(1280)
    for tensor in (head.weight, head.bias):
        assert tensor.abs().max() <= bound
    # Uniform on [−bound, bound]: 128,000 draws pin the standard deviation to bound/√3.
    assert head.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_dropout_acts_before_the_head_in_training_only() -> None:
    model = build_classifier(SMALL, 5, pretrained=False, dropout=0.5, frozen_batch_norm=True)
    x = pictures(2)
    with torch.no_grad():
        features = model.features(x)
        torch.manual_seed(0)
        expected = model.head(F.dropout(features, 0.5, training=True))
        torch.manual_seed(0)
        assert torch.equal(model(x), expected)
        assert torch.equal(model.eval()(x), model.head(features))


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_affine_parameters() -> None:
    torch.manual_seed(0)
    model = build_classifier("efficientnet_lite0", 10, frozen_batch_norm=True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert model.training
    assert len(batch_norms(model)) == 49
    assert not any(module.training for module in batch_norms(model))
    model.eval()
    model.train()
    assert model.backbone.training
    assert not any(module.training for module in batch_norms(model))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(pictures()), torch.arange(4)).backward()
    optimizer.step()

    after = model.state_dict()
    affine = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for kind in ("weight", "bias")
    }
    assert affine <= set(after)
    assert all(not torch.equal(before[key], after[key]) for key in affine)
    statistics = [key for key in after if key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(statistics) == 3 * 49
    assert all(torch.equal(before[key], after[key]) for key in statistics)


def test_batch_norm_that_is_not_frozen_follows_the_batches() -> None:
    model = build_classifier(SMALL, 10, pretrained=False)
    before = [module.running_mean.clone() for module in batch_norms(model) if module.running_mean is not None]
    model(pictures())
    after = [module.running_mean for module in batch_norms(model) if module.running_mean is not None]
    assert len(before) > 0
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_frozen_batch_norm_makes_training_and_evaluation_agree() -> None:
    frozen = build_classifier("efficientnet_lite0", 10, frozen_batch_norm=True)
    x = pictures()
    with torch.no_grad():
        assert torch.equal(frozen(x), frozen.eval()(x))


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 2.0, float("nan")])
def test_dropout_out_of_range(dropout: float) -> None:
    with pytest.raises(SteppeError, match="dropout must be at least 0 and below 1"):
        build_classifier(SMALL, 2, pretrained=False, dropout=dropout)


def test_no_class() -> None:
    with pytest.raises(SteppeError, match="at least one class, not 0"):
        build_classifier(SMALL, 0, pretrained=False)
