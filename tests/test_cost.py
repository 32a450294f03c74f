"""Costs against the reference libraries' parameter counts and torch's own counting of operations."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitrail import cost
from vitrail.config import (
    ABSOLUTE,
    EncoderConfig,
    HeadConfig,
    Place,
    PositionConfig,
    PositionKind,
    ResNetConfig,
    ViTConfig,
    variant,
)
from vitrail.model.build import build

TOY = ViTConfig(
    encoder=EncoderConfig(layers=2, width=24, heads=3, mlp_width=40),
    patch=(4, 8),
    image_size=(16, 24),
    head=HeadConfig(classes=5),
)
TOYS = {
    "plain": TOY,
    "no qkv bias, LayerScale": replace(TOY, encoder=replace(TOY.encoder, qkv_bias=False, layer_scale=0.1)),
    "SwiGLU": replace(TOY, encoder=replace(TOY.encoder, mlp="swiglu")),
    "one channel, mean of two layers": replace(TOY, channels=1, head=HeadConfig(("class", "mean"), 2, classes=3)),
    "distilled": replace(TOY, tokens=("class", "distillation"), head=HeadConfig(("class", "distillation"))),
    "registers without own positions": replace(
        TOY, tokens=("class", "register", "register"), position=PositionConfig(special=False)
    ),
    **{
        f"{kind} {place}": replace(TOY, tokens=("class", "register"), position=PositionConfig(kind, place=place))
        for kind in get_args(PositionKind)
        for place in get_args(Place)
        if kind in ABSOLUTE or place == "stem"
    },
    "clipped": replace(TOY, position=PositionConfig("relative-2d", clip=(2, 0))),
    "clipped, patches only": replace(TOY, position=PositionConfig("relative-1d", clip=(3,), special=False)),
    "hybrid": replace(TOY, stem=ResNetConfig((2, 1), width=32), patch=(1, 3)),
    "pre-logits": replace(TOY, head=HeadConfig(classes=5, prelogits=11)),
    "attention pooling": replace(TOY, tokens=(), head=HeadConfig(("map", "mean"), classes=5)),
    "no token": replace(TOY, tokens=(), head=HeadConfig(("mean",), norm="pooled")),
}


@pytest.mark.parametrize("config", TOYS.values(), ids=TOYS)
def test_parameters_of_toys(config: ViTConfig) -> None:
    assert cost.parameters(config) == sum(tensor.numel() for tensor in build(config).parameters())


@pytest.mark.parametrize("config", TOYS.values(), ids=TOYS)
def test_operations_of_toys(config: ViTConfig) -> None:
    model = build(config)
    images = torch.zeros(1, config.channels, *config.image_size)
    run = model if config.head.classes else model.features
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(images)
    assert cost.flops(config) == counter.get_total_flops()


def test_operations_of_base_16() -> None:
    assert cost.flops(variant("ViT-B/16", classes=1000)) / 1e9 == pytest.approx(35.1, abs=0.05)


def test_operations_grow_linearly_in_width_squared_and_quadratically_in_patches() -> None:
    """Article 2.2: attention's part is 4 N^2 D a layer."""
    config = variant("ViT-Ti/16")
    encoder, width = config.encoder, config.encoder.width

    def attention(side: int) -> int:
        at = config.at((side, side))
        patches = at.grid[0] * at.grid[1]
        dense = 2 * encoder.layers * at.sequence * (4 * width * width + 2 * width * encoder.mlp_width)
        return cost.flops(at) - dense - 2 * patches * 16 * 16 * 3 * width

    for side in (224, 448):
        assert attention(side) == 4 * encoder.layers * config.at((side, side)).sequence ** 2 * width
        assert cost.attention_flops(config.at((side, side))) == attention(side)


@pytest.mark.parametrize("name", ["ViT-Ti/16", "DINOv2-S/14"])
def test_training_memory_is_what_autograd_keeps(name: str) -> None:
    config = variant(name, (224, 224))
    config = replace(config, encoder=replace(config.encoder, layer_scale=None))
    model = build(config).train()
    images = torch.randn(2, 3, 224, 224)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    whole: list[torch.Tensor] = []  # so that no address is given out again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            whole.append(tensor)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.encode(images)
    assert sum(kept.values()) / 2 == pytest.approx(cost.training_bytes(config), rel=0.05)
