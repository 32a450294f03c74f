"""Parameter counts, to the unit, of the published variants in the reference libraries."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
import transformers

from vitrail import cost
from vitrail.config import ViTConfig, variant
from vitrail.model.build import build


def _count(model: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


def _ours(config: ViTConfig) -> int:
    with torch.device("meta"):
        count = _count(build(config))
    assert cost.parameters(config) == count
    return count


@pytest.mark.parametrize(
    ("ours", "theirs", "timms", "count"),
    [
        ("ViT-B/16", "vit_b_16", "vit_base_patch16_224", 86_567_656),
        ("ViT-L/16", "vit_l_16", "vit_large_patch16_224", 304_326_632),
        ("ViT-H/14", "vit_h_14", "vit_huge_patch14_224", 632_045_800),
    ],
)
def test_vit(ours: str, theirs: str, timms: str, count: int) -> None:
    with torch.device("meta"):
        torchvisions = _count(getattr(torchvision.models, theirs)())
        timms_count = _count(timm.create_model(timms, num_classes=1000))
    assert _ours(variant(ours, classes=1000)) == torchvisions == timms_count == count


@pytest.mark.parametrize(
    ("name", "timms"), [("ViT-Ti/16", "vit_tiny_patch16_224"), ("ViT-S/16", "vit_small_patch16_224")]
)
def test_small_vit(name: str, timms: str) -> None:
    with torch.device("meta"):
        theirs = _count(timm.create_model(timms, num_classes=1000))
    assert _ours(variant(name, classes=1000)) == theirs


@pytest.mark.parametrize(
    ("name", "timms"),
    [
        ("R50+ViT-B/16", "vit_base_r50_s16_224"),
        ("R26+ViT-B/32", "vit_base_r26_s32_224"),
        ("R26+ViT-S/32", "vit_small_r26_s32_224"),
        ("R50+ViT-L/32", "vit_large_r50_s32_224"),
    ],
)
def test_hybrid(name: str, timms: str) -> None:
    theirs = _count(timm.create_model(timms, num_classes=1000))  # runs its stem, so not on meta
    assert _ours(variant(name, classes=1000)) == theirs


@pytest.mark.parametrize(
    ("size", "word", "config"),
    [
        ("S", "small", {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}),
        ("B", "base", {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}),
        ("L", "large", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}),
        (
            "g",
            "giant",
            {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
        ),
    ],
)
def test_dinov2(size: str, word: str, config: dict[str, int]) -> None:
    with torch.device("meta"):
        timms = _count(timm.create_model(f"vit_{word}_patch14_dinov2"))
        described = transformers.Dinov2Config(image_size=518, patch_size=14, use_mask_token=False, **config)
        huggingface = _count(transformers.Dinov2Model(described))
    assert _ours(variant(f"DINOv2-{size}/14")) == timms == huggingface
