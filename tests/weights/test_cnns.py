"""BiT's ResNets and EfficientNets in their libraries' words: read, run on a par, written, and read by the libraries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from vitrail.config import (
    Architecture,
    BiTConfig,
    EfficientNetConfig,
    HeadConfig,
    ModelCard,
    Preprocessing,
    ResNetConfig,
    architecture,
    resnet,
)
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.tasks.convert import convert
from vitrail.tasks.parity import parity
from vitrail.weights.dialect import Found
from vitrail.weights.dialects import written
from vitrail.weights.efficientnets import TorchvisionEfficientNet
from vitrail.weights.load import load_weights

MEAN = HeadConfig(("mean",), classes=3)
BIT = BiTConfig(ResNetConfig((2, 1), 32, "variance", 1e-10, 1e-5), head=MEAN)
BLOCKS = [f"block {number}" for number in range(16)]


def _card(config: Architecture) -> ModelCard:
    how = Preprocessing(config.image_size, "squash", 1.0, "bilinear", (0.4,) * 3, (0.3,) * 3)
    return ModelCard(config, how, ("cat", "dog", "emu"))


@pytest.fixture(scope="session")
def lived() -> Callable[[nn.Module], nn.Module]:
    """Norms and a classifier as if something had been learned, none of them zero or one."""

    def live(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)

        def about(tensor: Tensor | None, centre: float, reach: float) -> None:
            assert tensor is not None
            tensor.data.copy_(centre + reach * (torch.rand(tensor.shape, generator=generator) - 0.5))

        for part in model.modules():
            if isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
                about(part.weight, 1.0, 0.4)
                about(part.bias, 0.0, 0.4)
            if isinstance(part, nn.BatchNorm2d):
                about(part.running_mean, 0.0, 0.4)
                about(part.running_var, 1.0, 0.4)
        for tensor in list(model.parameters())[-2:]:
            about(tensor, 0.0, 0.4)
        return model.eval()

    return live


def _on_a_par(loaded: Any, theirs: nn.Module, size: tuple[int, int], within: float = 1e-10) -> None:
    """In float64, where nothing but another computation is seen: in float32, R50's rounding comes to 1e-5."""
    ours = build(loaded.card.architecture.at(size))
    ours.load_state_dict(loaded.tensors)
    ours, theirs = ours.double(), copy.deepcopy(theirs).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(images)
        assert float(expected.std()) > 1e-3
        assert float((ours(images) - expected).norm() / expected.norm()) < within


def test_timms_bit_from_a_folder(tmp_path: Path, lived: Any) -> None:
    theirs = lived(timm.create_model("resnetv2_50x1_bit", num_classes=3))
    timm.models.save_for_hf(theirs, str(tmp_path / "a"))
    loaded = load_weights(tmp_path / "a")
    assert {fate.what for fate in loaded.report} == {"loaded"}
    assert loaded.card.architecture == resnet("R50", classes=3)
    assert (loaded.card.preprocessing.crop_fraction, loaded.card.preprocessing.interpolation) == (0.875, "bicubic")
    _on_a_par(loaded, theirs, (64, 50))
    assert convert(tmp_path / "a", tmp_path / "b", "timm").lost == ("temperature",)
    again = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    compared = parity(str(tmp_path / "b"), "timm", resolution=64, double=True)
    assert [entry.where for entry in compared.differences] == [*BLOCKS, "logits"]
    assert compared.parts_at is None


def test_timms_bare_state_dict_says_it_all(tmp_path: Path, lived: Any) -> None:
    """Depth, width and classes; epsilons are the same in all of that name."""
    standardised = partial(StdConv2d, eps=1e-8)
    theirs = lived(ResNetV2([1, 2], (128, 256), 5, stem_chs=32, stem_type="fixed", conv_layer=standardised))
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    loaded = load_weights(tmp_path / "a.safetensors")
    trunk = ResNetConfig((1, 2), 32, "variance", 1e-8, 1e-5)
    assert loaded.card.architecture == BiTConfig(trunk, head=HeadConfig(("mean",), classes=5))
    _on_a_par(loaded, theirs, (40, 32))
    assert load_weights(theirs.state_dict(), classes=()).card.architecture.head.classes == 0


def test_googles_bit(tmp_path: Path, lived: Any) -> None:
    """timm's own reader of those files as the judge; it divides by sqrt(var + 1e-8)."""
    config = replace(resnet("R50", classes=3), trunk=replace(resnet("R50").trunk, standard_eps=1e-10))
    model = lived(build(config))
    path = tmp_path / "BiT-M-R50x1.npz"
    written("google", config).write(_card(config), model.state_dict(), path)
    with np.load(path) as arrays:
        assert arrays["resnet/root_block/standardized_conv2d/kernel"].shape == (7, 7, 3, 64)
        assert arrays["resnet/block2/unit01/a/proj/standardized_conv2d/kernel"].shape == (1, 1, 256, 512)
        assert arrays["resnet/block4/unit03/c/group_norm/gamma"].shape == (512,)
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=3)
    theirs.load_pretrained(str(path))
    loaded = load_weights(path)
    assert loaded.card.architecture == config
    assert loaded.card.preprocessing == Preprocessing((224, 224), "squash", 1.0, "bilinear")
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in model.state_dict().items())
    _on_a_par(loaded, theirs.eval(), (64, 64), within=1e-4)


def test_a_toy_of_googles_comes_back(tmp_path: Path, lived: Any) -> None:
    model = lived(build(BIT))
    written("google", BIT).write(_card(BIT), model.state_dict(), tmp_path / "a.npz")
    loaded = load_weights(tmp_path / "a.npz", image_size=(40, 40))
    assert loaded.card.architecture == BIT.at((40, 40))
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in model.state_dict().items())


def test_torchvisions_efficientnet(tmp_path: Path, lived: Any) -> None:
    theirs = lived(torchvision.models.efficientnet_b0(num_classes=3))
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    loaded = load_weights(tmp_path / "a.safetensors")
    assert {fate.what for fate in loaded.report} == {"loaded"}
    assert loaded.card.architecture == architecture("EfficientNet-B0", classes=3)
    how, own = _fed("B0"), loaded.card.preprocessing
    assert (own.size[0], own.size[0] / own.crop_fraction) == (how.crop_size[0], how.resize_size[0])
    assert (list(own.mean), list(own.std), own.interpolation) == (how.mean, how.std, how.interpolation.value)
    _on_a_par(loaded, theirs, (64, 50))
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "torchvision")
    compared = parity(str(tmp_path / "b.safetensors"), "torchvision", resolution=64)
    assert [entry.where for entry in compared.differences] == [*BLOCKS, "logits"]
    assert compared.parts_at is None


def _fed(scale: str) -> Any:
    return getattr(torchvision.models, f"EfficientNet_{scale}_Weights").IMAGENET1K_V1.transforms()


@pytest.mark.parametrize("scale", ["B1", "B2", "B3", "B4", "B5", "B6", "B7"])
def test_every_scale_is_told_from_the_others_and_fed_as_torchvision_feeds_it(scale: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"efficientnet_{scale.lower()}")(num_classes=3)
    own = TorchvisionEfficientNet().read(Found("theirs", theirs.state_dict()))
    how = _fed(scale)
    assert own.architecture.summary == architecture(f"EfficientNet-{scale}").summary
    assert own.preprocessing.size[0] == how.crop_size[0]
    assert own.preprocessing.size[0] / own.preprocessing.crop_fraction == pytest.approx(how.resize_size[0])
    assert own.preprocessing.interpolation == how.interpolation.value


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b1"])
def test_timms_efficientnet(name: str, tmp_path: Path, lived: Any) -> None:
    theirs = lived(timm.create_model(name, num_classes=3))
    timm.models.save_for_hf(theirs, str(tmp_path / "a"))
    loaded = load_weights(tmp_path / "a")
    assert {fate.what for fate in loaded.report} == {"loaded"}
    assert loaded.card.preprocessing.size == tuple(theirs.pretrained_cfg["input_size"][1:])
    _on_a_par(loaded, theirs, (64, 50))
    convert(tmp_path / "a", tmp_path / "b", "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    if name == "efficientnet_b0":
        assert parity(str(tmp_path / "b"), "timm", resolution=64).parts_at is None


def _state(name: str) -> dict[str, Tensor]:
    return dict(timm.create_model(name, num_classes=3).state_dict())


def test_what_is_another_architecture_is_refused() -> None:
    efficientnet = _state("efficientnet_b0")
    with pytest.raises(UserError, match="which do not say how borders are padded"):
        load_weights(efficientnet)
    with pytest.raises(UserError, match="borders are padded as TensorFlow's are; the nearest is efficientnet_b0"):
        load_weights(efficientnet, architecture="tf_efficientnet_b0")
    bit = {"stem.conv.weight": torch.zeros(64, 3, 7, 7), "stages.0.blocks.0.norm3.weight": torch.zeros(64)}
    with pytest.raises(UserError, match=r"does not read timm's architecture 'resnetv2_50'"):
        load_weights(bit, architecture="resnetv2_50")
    with pytest.raises(UserError, match=r"lacks the tensor norm\.weight"):
        load_weights(bit)
    with pytest.raises(UserError, match="begin with a 7x7 convolution"):
        load_weights({"resnet/root_block/standardized_conv2d/kernel": torch.zeros(3, 3, 3, 64)})
    odd = torchvision.models.efficientnet_b0(num_classes=3).state_dict()
    odd = {name: tensor for name, tensor in odd.items() if not name.startswith("features.7.")}
    with pytest.raises(UserError, match=r"EfficientNet of \[1, 2, 2, 3, 3, 4\] blocks"):
        load_weights(odd)


UNSAYABLE: list[tuple[str, Architecture, str]] = [
    ("google", replace(BIT, root="3x3"), "Google's .npz has no words for a root of 3x3, only for 7x7"),
    ("google", resnet("R14", classes=3), "an epsilon of standardising of 1e-08, only for 1e-10"),
    ("timm", resnet("R26", classes=3), "timm has no ResNet of 8 units"),
    ("timm", BIT, "an epsilon of standardising of 1e-10, only for 1e-08"),
    ("torchvision", BIT, "torchvision has no words for such a CNN"),
    ("huggingface", BIT, "huggingface has no words for such a CNN"),
    ("timm", EfficientNetConfig(0.3, 0.3, head=MEAN), "0.3 times as wide and 0.3 times as deep as B0, only for B0"),
    ("torchvision", EfficientNetConfig(norm_eps=1e-3, head=MEAN), "BatchNorm epsilon of 0.001, only for 1e-05"),
]


@pytest.mark.parametrize(("name", "config", "sentence"), UNSAYABLE)
def test_what_a_library_cannot_say_is_refused(name: str, config: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        written(name, config).write(_card(config), dict(build(config).state_dict()), tmp_path / "model")
    assert not list(tmp_path.iterdir())
