"""Small models of every outline that an analysis has to cope with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, ViTConfig
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer

OUTLINES: dict[str, ViTConfig] = {
    name: ViTConfig(
        EncoderConfig(layers=3, width=24, heads=3, mlp_width=48),
        patch=(4, 4),
        image_size=size,
        tokens=tokens,
        position=PositionConfig(kind),
        head=HeadConfig(parts=("class",) if "class" in tokens else ("mean",), classes=5),
    )
    for name, size, tokens, kind in (
        ("square", (16, 16), ("class",), "learned-1d"),
        ("oblong", (12, 20), ("class",), "learned-1d"),
        ("registers", (12, 20), ("class", "register", "register"), "rope-2d"),
        ("patches alone", (20, 12), (), "relative-2d"),
    )
}


@pytest.fixture(params=OUTLINES)
def outline(request: pytest.FixtureRequest) -> ViTConfig:
    """The configuration of a small model."""
    return OUTLINES[request.param]


@pytest.fixture
def model(outline: ViTConfig) -> VisionTransformer:
    """A model of random weights, the head's too, large enough that attention is far from uniform."""
    torch.manual_seed(3)
    made = build(outline).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.35)
    return made


@pytest.fixture
def images() -> Callable[[VisionTransformer, int], torch.Tensor]:
    """Noise of a model's size, (B, C, H, W)."""

    def make(model: VisionTransformer, count: int) -> torch.Tensor:
        return torch.randn(count, 3, *model.config.image_size, generator=torch.Generator().manual_seed(5))

    return make
