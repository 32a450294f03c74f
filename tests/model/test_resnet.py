"""The hybrid's ResNet against timm's, and what standardising and padding do."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
import timm.layers
import torch
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn

from vitrail.config import EncoderConfig, HeadConfig, ResNetConfig, ViTConfig, variant
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.resnet import Convolution, ResNet

TIMMS: dict[str, Any] = {"standard": "variance", "standard_eps": 1e-8, "norm_eps": 1e-5}


def _timms(layers: tuple[int, ...]) -> ResNetV2:
    convolution = partial(timm.layers.StdConv2dSame, eps=1e-8)
    return ResNetV2(
        layers, num_classes=0, global_pool="", width_factor=0.5, preact=False, stem_type="same", conv_layer=convolution
    )


def _random(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.2 + (tensor.dim() == 1)
    return module.double().eval()


def _renamed(state: dict[str, Tensor], words: dict[str, str], prefix: str = "") -> dict[str, Tensor]:
    for theirs, ours in words.items():
        state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
    return {prefix + name: tensor for name, tensor in state.items()}


def _stem(theirs: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """timm's ResNet under our names."""
    words = {"stem.conv": "root", "stem.norm": "norm", "blocks.": ""}
    words |= {"downsample.conv": "shortcut.0", "downsample.norm": "shortcut.1"}
    return _renamed(theirs.state_dict(), words, prefix)


@pytest.mark.parametrize("layers", [(2,), (1, 2), (2, 1, 1, 1)])
@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_feature_map_is_timms(layers: tuple[int, ...], size: tuple[int, int]) -> None:
    """At sizes that no stride divides too, where SAME pads unevenly."""
    theirs = _random(_timms(layers))
    ours = ResNet(ResNetConfig(layers, 32, **TIMMS), 3).double()
    ours.load_state_dict(_stem(theirs))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = theirs(images)
    torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-10)
    config = ResNetConfig(layers, 32)
    assert expected.shape[1] == config.outputs
    assert expected.shape[2:] == tuple(-(-length // config.stride) for length in size)


def test_hybrid_is_timms() -> None:
    """The whole of it, stem to logits."""
    theirs = _random(
        VisionTransformer(
            img_size=(64, 96),
            patch_size=1,
            num_classes=5,
            embed_dim=24,
            depth=2,
            num_heads=3,
            embed_layer=partial(HybridEmbed, backbone=_timms((1, 2))),
        )
    )
    config = ViTConfig(
        EncoderConfig(2, 24, 3, 96),
        patch=(1, 1),
        image_size=(64, 96),
        head=HeadConfig(classes=5),
        stem=ResNetConfig((1, 2), 32, **TIMMS),
    )
    assert config.grid == (8, 12)
    ours = build(config).double()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "backbone" not in name}
    table = state.pop("pos_embed")[0]
    words = {"blocks.": "encoder.blocks.", "attn.qkv": "attention.qkv", "attn.proj": "attention.out"}
    words |= {"patch_embed.proj": "patches.projection", "head.": "classifier."}
    ours.load_state_dict(
        {
            "tokens": state.pop("cls_token")[0],
            "position.tokens": table[:1],
            "position.grid": table[1:].reshape(8, 12, 24),
            **_stem(theirs.patch_embed.backbone, "stem."),
            **_renamed(state, words),
        }
    )
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("standard", ["deviation", "variance"])
def test_standardised_kernels(standard: Literal["deviation", "variance"]) -> None:
    config = ResNetConfig((1,), 32, standard, standard_eps=0.1)
    convolution = _random(Convolution(config, 3, 5, 3))
    kernels = convolution.weight.detach().numpy()
    axes = (1, 2, 3)
    centred = kernels - kernels.mean(axes, keepdims=True)
    deviation, variance = kernels.std(axes, keepdims=True), kernels.var(axes, keepdims=True)
    expected = centred / (deviation + 0.1 if standard == "deviation" else np.sqrt(variance + 0.1))
    np.testing.assert_allclose(convolution.standardised().detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "layers", "grid"),
    [
        ("R50+ViT-B/16", (3, 4, 9), (14, 14)),
        ("R26+ViT-B/32", (2, 2, 2, 2), (7, 7)),
        ("R50+ViT-L/32", (3, 4, 6, 3), (7, 7)),
    ],
)
def test_names(name: str, layers: tuple[int, ...], grid: tuple[int, int]) -> None:
    config = variant(name)
    assert config.stem == ResNetConfig(layers)
    assert (config.patch, config.grid) == ((1, 1), grid)
    assert variant(name, (256, 384)).grid == (256 * grid[0] // 224, 384 * grid[1] // 224)
    with pytest.raises(UserError, match=r"not a whole number of patches of (16x16|32x32): the nearest sizes are"):
        variant(name, (225, 225))


@pytest.mark.parametrize("name", ["R26+ViT-B/16", "R50+DINOv2-S/14", "R50+ViT-B/8", "R9+ViT-B/16"])
def test_hybrids_nobody_has(name: str) -> None:
    with pytest.raises(UserError, match=r"There is no variant 'R.*the nearest is "):
        variant(name)


@pytest.mark.parametrize("fields", [((), 32), ((1, 0), 32), ((1,), 40), ((1,), 0)])
def test_stems_that_cannot_be(fields: tuple[tuple[int, ...], int]) -> None:
    with pytest.raises(UserError, match=r"A ResNet needs units in each of its stages and a width that is a multiple"):
        ResNetConfig(*fields)
