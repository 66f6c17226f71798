"""Backbones by name: which are known, where their weights come from, what is said when there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from steppe.errors import SteppeError
from steppe.models import backbone_names, build_classifier
from steppe.models.backbones import build_backbone, load_weights

SMALL = "test_resnet"  # timm's miniature of a residual network


def random_state(num_classes: int, seed: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = timm.create_model(SMALL, num_classes=num_classes).state_dict()
    return state


def assert_same(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(state) <= set(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())


def test_names_start_with_the_embedded_one_and_are_unique() -> None:
    names = backbone_names()
    assert names[0] == "efficientnet_lite0"
    assert len(set(names)) == len(names) > 500
    assert {"resnet50", "vit_base_patch16_224", "tf_efficientnet_lite0"} <= set(names)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet51", "'resnet50'"),
        ("EfficientNetLite0", "'efficientnet_lite0'"),
        ("efficientnet-lite0", "lite0'"),
    ],
)
def test_unknown_names_get_near_matches(name: str, near: str) -> None:
    with pytest.raises(SteppeError, match=f"unknown backbone '{name}'; did you mean .*{near}"):
        build_classifier(name, 10)


def test_a_name_like_no_other_is_not_answered_by_a_thousand_names() -> None:
    with pytest.raises(SteppeError, match=r"unknown backbone '\?\?\?\?\?\?\?\?'") as caught:
        build_classifier("????????", 10)
    assert "backbone_names()" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_unknown_pretraining_tag_gets_near_matches() -> None:
    with pytest.raises(SteppeError, match=r"of resnet50 'a1_in1kk'; did you mean 'a1_in1k'"):
        build_classifier("resnet50.a1_in1kk", 10)


def test_the_plain_name_is_the_embedded_network_and_a_tag_asks_timm() -> None:
    embedded = build_backbone("efficientnet_lite0", pretrained=False)
    timms = build_backbone("efficientnet_lite0.ra_in1k", pretrained=False)
    assert embedded.pretrained_cfg["architecture"] == "tf_efficientnet_lite0"
    assert timms.pretrained_cfg["architecture"] == "efficientnet_lite0"


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(SteppeError, match=r"no pre-trained weights for test_mambaout.*pretrained=False"):
        build_classifier("test_mambaout", 10)


def test_without_a_connection_the_error_says_what_to_do(tmp_path: Path) -> None:
    program = (
        "from steppe.models import build_classifier\n"
        "from steppe.errors import SteppeError\n"
        "build_classifier('efficientnet_lite0', 10)\n"
        "try:\n"
        "    build_classifier('test_resnet.r160_in1k', 10)\n"
        "except SteppeError as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message = done.stdout
    assert message.startswith("cannot get the backbone test_resnet.r160_in1k from timm's model hub")
    for way_out in ("'efficientnet_lite0'", "local checkpoint", "pretrained=False", "--no-pretrained"):
        assert way_out in message


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("num_classes", [0, 1000])
def test_a_local_checkpoint_of_timm_comes_back_bit_for_bit(tmp_path: Path, suffix: str, num_classes: int) -> None:
    state = random_state(num_classes)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, path)
    torch.manual_seed(6)
    model = build_classifier(SMALL, 10, weights=path)  # pretrained, but the file goes first: no hub is asked
    assert_same(model.backbone.state_dict(), state)


def test_the_backbone_of_a_saved_classifier_can_be_used_for_another(tmp_path: Path) -> None:
    torch.manual_seed(7)
    trained = build_classifier("efficientnet_lite0", 10, pretrained=False)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    model = build_classifier("efficientnet_lite0", 4, weights=tmp_path / "model.safetensors")
    assert_same(model.backbone.state_dict(), trained.backbone.state_dict())
    assert model.head.out_features == 4


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(random_state(0), path)
    with pytest.raises(SteppeError, match=r"weights\.safetensors do not fit resnet18"):
        build_classifier("resnet18", 10, weights=path)


def test_a_checkpoint_that_differs_in_a_single_tensor_is_refused(tmp_path: Path) -> None:
    backbone = build_backbone(SMALL, pretrained=False)
    path = tmp_path / "weights.safetensors"
    complete = random_state(0)
    save_file({key: tensor for key, tensor in complete.items() if key != "bn1.weight"}, path)
    with pytest.raises(SteppeError, match=r"fit test_resnet: 1 missing \(bn1\.weight\)$"):
        load_weights(backbone, path)
    save_file(complete | {"extra": torch.zeros(1)}, path)
    with pytest.raises(SteppeError, match=r"fit test_resnet: 1 not part of it \(extra\)$"):
        load_weights(backbone, path)
    save_file(complete | {"bn1.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(SteppeError, match=r"fit test_resnet: 1 of another shape \(bn1\.weight\)$"):
        load_weights(backbone, path)


class Pickled:
    """Something that only unpickling arbitrary code would bring back."""


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match=r"no file of weights at .*absent\.pt"):
        build_classifier(SMALL, 10, weights=tmp_path / "absent.pt")
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(SteppeError, match=rf"cannot read weights from .*{name}"):
            build_classifier(SMALL, 10, weights=tmp_path / name)
    torch.save({"model": Pickled()}, tmp_path / "code.pt")
    with pytest.raises(SteppeError, match=r"cannot read weights from .*code\.pt"):
        build_classifier(SMALL, 10, weights=tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    with pytest.raises(SteppeError, match=r"numbers\.pt does not hold a state dict"):
        build_classifier(SMALL, 10, weights=tmp_path / "numbers.pt")
