"""A blank model is the same model without its numbers."""

from __future__ import annotations

import pytest
import torch

from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, ViTConfig, variant
from vitrail.model.build import blank, build

TOY = ViTConfig(EncoderConfig(2, 32, 4, 48), (4, 8), (12, 32), head=HeadConfig(("map",), classes=3))


@pytest.mark.parametrize(
    "config",
    [
        TOY,
        variant("R50+ViT-Ti/16", (64, 64), classes=5),
        ViTConfig(TOY.encoder, (4, 8), (12, 32), position=PositionConfig("learned-2d", place="every-layer")),
    ],
    ids=["map", "hybrid", "every layer"],
)
def test_a_blank_model_has_every_tensor_and_no_memory(config: ViTConfig) -> None:
    before = torch.get_rng_state()
    with blank():
        found = build(config).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in build(config).state_dict().items()
    }
    assert all(tensor.is_meta for tensor in found.values())
