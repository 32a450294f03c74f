"""BiT against timm's, its published size, and the names."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from vitrail.config import BiTConfig, HeadConfig, resnet
from vitrail.errors import UserError
from vitrail.model.build import blank, build


def _renamed(theirs: nn.Module) -> dict[str, Tensor]:
    """timm's tensors under our names; its classifier is a 1x1 convolution."""
    words = {"stem.conv": "root", ".blocks": "", "downsample.conv": "shortcut", "head.fc": "classifier"}
    state = theirs.state_dict()
    for word, ours in words.items():
        state = {name.replace(word, ours): tensor for name, tensor in state.items()}
    state["classifier.weight"] = state["classifier.weight"].flatten(1)
    return state


def _random(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.2 + (tensor.dim() == 1)
    return module.to(dtype).eval()


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_r50_is_timms(dtype: torch.dtype, within: float, size: tuple[int, int]) -> None:
    """Logits of the whole model, at sizes that no stride divides too."""
    theirs = _random(timm.create_model("resnetv2_50x1_bit", num_classes=5), dtype)
    assert isinstance(theirs, ResNetV2)
    trunk = resnet("R50").trunk
    ours = build(BiTConfig(trunk, image_size=size, head=HeadConfig(("mean",), classes=5))).to(dtype)
    ours.load_state_dict(_renamed(theirs))
    images = torch.randn(2, 3, *size, dtype=dtype)
    expected = theirs(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(images), expected, rtol=within, atol=within)


@pytest.mark.parametrize(("depth", "parameters"), [(50, 25_549_352), (101, 44_541_480)])
def test_tensors_are_timms_by_name_shape_and_number(depth: int, parameters: int) -> None:
    with blank():
        ours = build(resnet(f"R{depth}", classes=1000))
        theirs = timm.create_model(f"resnetv2_{depth}x1_bit", num_classes=1000)
    assert isinstance(theirs, ResNetV2)
    expected = {name: tensor.shape for name, tensor in _renamed(theirs).items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected
    assert sum(shape.numel() for shape in expected.values()) == parameters


@pytest.mark.parametrize(
    ("name", "units", "width"), [("R26", 8, 64), ("R101", 33, 64), ("R50x3", 16, 192), ("R3-1x0.5", 4, 32)]
)
def test_names(name: str, units: int, width: int) -> None:
    trunk = resnet(name).trunk
    assert (sum(trunk.layers), trunk.width) == (units, width)


def test_small_pictures_keep_their_size_at_first() -> None:
    """32 pixels: stride 1 at the root, then three halvings."""
    model = build(resnet("R14x0.5", (32, 32), classes=3))
    images = torch.randn(2, 3, 32, 32)
    assert model.feature_map(images).shape == (2, model.config.feature_width, 4, 4)
    assert model.config.feature_width == 1024
    assert model(images).shape == (2, 3)
    assert resnet("R14x0.5", (65, 64)).root == "7x7"


def test_depth_rises_through_the_units() -> None:
    with blank():
        model = build(resnet("R26", classes=3))
    depths = [model.depth(name) for name, _ in model.named_parameters()]
    assert depths == sorted(depths)
    assert sorted(set(depths)) == list(range(10))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("R51", r"no ResNet 'R51'; the nearest is R50\."), ("R50x0.3", "19.2 channels wide"), ("R50x0", "0 channels")],
)
def test_names_nobody_has(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resnet(name)


def test_what_a_resnet_cannot_do() -> None:
    with pytest.raises(UserError, match="no tokens to choose from"):
        BiTConfig(resnet("R26").trunk, head=HeadConfig(("class",)))
    model = build(resnet("R14x0.5", (32, 32)))
    with pytest.raises(UserError, match="no classifier"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="of 32x32 pixels, not a batch of shape"):
        model.features(torch.zeros(1, 3, 64, 64))
