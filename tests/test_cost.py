"""Costs against the reference libraries' parameter counts and torch's own counting of operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitrail import cost
from vitrail.config import (
    ABSOLUTE,
    BiTConfig,
    EfficientNetConfig,
    EncoderConfig,
    HeadConfig,
    Place,
    PositionConfig,
    PositionKind,
    ResNetConfig,
    ViTConfig,
    architecture,
    variant,
)
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.heads import Pooling
from vitrail.runtime.merging import Merged

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

CNNS = {
    "ResNet": BiTConfig(ResNetConfig((2, 1), 32), image_size=(37, 50), head=HeadConfig(("mean",), classes=5)),
    "ResNet of small pictures": BiTConfig(ResNetConfig((1, 2, 1), 32), "3x3", (16, 18), channels=1),
    "EfficientNet": EfficientNetConfig(0.3, 0.4, (33, 64), head=HeadConfig(("mean",), classes=5)),
    "EfficientNet-B0": architecture("EfficientNet-B0", (64, 64)),
}


@pytest.mark.parametrize("config", (TOYS | CNNS).values(), ids=TOYS | CNNS)
def test_parameters_of_toys(config: ViTConfig) -> None:
    assert cost.parameters(config) == sum(tensor.numel() for tensor in build(config).parameters())


@pytest.mark.parametrize("config", (TOYS | CNNS).values(), ids=TOYS | CNNS)
def test_operations_of_toys(config: ViTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pooling, "read", None)  # every token through every block
    model = build(config)
    images = torch.zeros(1, config.channels, *config.image_size)
    run = model if config.head.classes else model.features
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(images)
    assert cost.flops(config) == counter.get_total_flops()


ABSOLUTE_TOYS = {name: toy for name, toy in TOYS.items() if toy.position.kind in ("none", *ABSOLUTE)}


@pytest.mark.parametrize("merging", [(5, 1), (0, 2), (3, 0)], ids=str)
@pytest.mark.parametrize("config", ABSOLUTE_TOYS.values(), ids=ABSOLUTE_TOYS)
def test_operations_with_merging(config: ViTConfig, merging: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pooling, "read", None)
    config = replace(config, head=replace(config.head, classes=0, prelogits=None)).at((64, 48))
    model = Merged(build(config), merging)
    images = torch.zeros(1, config.channels, *config.image_size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    assert cost.merged_flops(config, merging) == counter.get_total_flops()


def test_operations_with_merging_by_hand() -> None:
    """TOY's 4 x 3 patches and class token, of which the first layer merges 5 and the second 1."""
    assert cost.merged_tokens(TOY, (5, 1)) == (13, 8, 7)
    embedding, head = 12 * 3 * 4 * 8 * 24, 24 * 5
    dense = 13 * 4 * 24 * 24 + 8 * 2 * 24 * 40 + 8 * 4 * 24 * 24 + 7 * 2 * 24 * 40
    attention = 2 * 13 * 13 * 24 + 2 * 8 * 8 * 24
    similarities = 6 * 6 * 8 + 4 * 3 * 8
    assert cost.merged_flops(TOY, (5, 1)) == 2 * (embedding + dense + attention + similarities + head)
    assert cost.merged_flops(TOY, ()) == cost.merged_flops(TOY, (0, 0)) == cost.flops(TOY)


@pytest.mark.parametrize(
    ("merging", "complaint"),
    [
        ((1,), "each of the model's 2 layers, not 1"),
        ((7, 0), "Layer 0 cannot merge 7 of the 12 patches it has: choose 0 to 6"),
        ((5, 4), "Layer 1 cannot merge 4 of the 7 patches it has: choose 0 to 3"),
        ((0, -1), "Layer 1 cannot merge -1 of the 12 patches it has: choose 0 to 6"),
    ],
    ids=str,
)
def test_merging_that_does_not_fit(merging: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        cost.merged_flops(TOY, merging)


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
    assert _kept(model, lambda: model.encode(torch.randn(2, 3, 224, 224))) / 2 == pytest.approx(
        cost.training_bytes(config), rel=0.05
    )


@pytest.mark.parametrize("name", ["R26", "R14x0.5", "EfficientNet-B0"])
@pytest.mark.parametrize("side", [64, 96])
def test_training_memory_of_cnns_is_what_autograd_keeps(name: str, side: int) -> None:
    config = architecture(name, (side, side))
    model = build(config).train()
    images = torch.randn(4, 3, side, side)
    kept = _kept(model, lambda: model.features(images)) - _kept(model, lambda: model.features(images[:2]))
    assert kept / 2 == pytest.approx(cost.training_bytes(config), rel=0.05)


def _kept(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes kept for the backward pass, besides parameters."""
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
        run()
    return sum(kept.values())
