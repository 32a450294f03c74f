"""Attention pooling and pre-logits against the libraries that have them, and what cannot be asked for."""

from __future__ import annotations

from typing import Any

import pytest
import timm.layers
import torch
import transformers
from torch.nn import functional as F
from transformers.models.siglip import modeling_siglip as siglip

from vitrail.config import EncoderConfig, HeadConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.heads import AttentionPooling

ENCODER = EncoderConfig(layers=2, width=24, heads=3, mlp_width=40, mlp="gelu-tanh")


def _trained(module: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.4
    return module.double().eval()


def test_attention_pooling_is_siglips() -> None:
    ours = _trained(AttentionPooling(ENCODER))
    theirs = siglip.SiglipMultiheadAttentionPoolingHead(
        transformers.SiglipVisionConfig(
            hidden_size=24, num_attention_heads=3, intermediate_size=40, layer_norm_eps=1e-6
        )
    ).double()
    names = {
        "probe": ours.probe[None],
        "attention.in_proj_weight": torch.cat([ours.q.weight, ours.kv.weight]),
        "attention.in_proj_bias": torch.cat([ours.q.bias, ours.kv.bias]),
        "attention.out_proj.weight": ours.out.weight,
        "attention.out_proj.bias": ours.out.bias,
        **{f"layernorm.{name}": tensor for name, tensor in ours.norm.named_parameters()},
        **{f"mlp.{name}": tensor for name, tensor in ours.mlp.named_parameters()},
    }
    theirs.load_state_dict(names)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_attention_pooling_is_timms() -> None:
    ours = _trained(AttentionPooling(ENCODER))
    theirs = timm.layers.AttentionPoolLatent(
        24, num_heads=3, mlp_ratio=40 / 24, norm_layer=lambda width, **_: torch.nn.LayerNorm(width, eps=1e-6),
        act_layer=lambda: torch.nn.GELU(approximate="tanh"),
    ).double()  # fmt: skip
    state = {name.replace("out.", "proj."): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict({**{name: state[name] for name in state if name != "probe"}, "latent": ours.probe[None]})
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_pooled_by_attention_within_a_model() -> None:
    config = ViTConfig(ENCODER, (4, 4), (8, 12), tokens=(), head=HeadConfig(("mean", "map"), classes=3))
    model = _trained(build(config))
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    z = model.norm(model.encode(images)[0])
    expected = torch.cat([z.mean(1), model.pooling.map(z)], dim=1)
    torch.testing.assert_close(model.features(images), expected, rtol=0, atol=1e-12)
    assert model.features(images).shape == (2, config.feature_width)
    assert {model.depth(name) for name, _ in model.pooling.named_parameters(prefix="pooling")} == {3}


def test_prelogits() -> None:
    """Section 3.1's hidden layer with tanh, between the features and the classifier."""
    config = ViTConfig(ENCODER, (4, 4), (8, 12), head=HeadConfig(classes=3, prelogits=10))
    model = _trained(build(config))
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    features = model.features(images)
    assert features.shape == (2, 24)
    hidden = torch.tanh(F.linear(features, model.prelogits.weight, model.prelogits.bias))
    expected = F.linear(hidden, model.classifier.weight, model.classifier.bias)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-12)
    assert model.depth("prelogits.weight") == model.depth("classifier.weight") == 3
    assert build(config.with_head(HeadConfig(classes=3))).prelogits is None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"parts": ("map",), "layers": 2}, r"Attention pooling reads the last layer alone, not 2: pool 1 layer\.$"),
        ({"prelogits": 8}, r"A pre-logits layer of width 8 before 0 classes: .*\.$"),
        ({"prelogits": 0, "classes": 3}, r"A pre-logits layer of width 0 before 3 classes: .*\.$"),
    ],
)
def test_heads_that_cannot_be(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        HeadConfig(**fields)
