"""config -> model: the only place that picks classes."""

from __future__ import annotations

import torch

from vitrail.config import ViTConfig
from vitrail.model.encoder import Encoder
from vitrail.model.heads import Classifier, Pooling
from vitrail.model.patches import PatchEmbedding
from vitrail.model.position import Learned1D
from vitrail.model.vision import VisionTransformer


def build(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """A model with fresh weights, which depend on ``config`` and ``seed`` alone; in evaluation mode."""
    width = config.encoder.width
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        model = VisionTransformer(
            config,
            patches=PatchEmbedding(config.channels, width, config.patch),
            position=Learned1D(len(config.tokens), config.grid, width),
            encoder=Encoder(config.encoder),
            pooling=Pooling(config.head, config.tokens),
            classifier=Classifier(config.feature_width, config.head.classes) if config.head.classes else None,
        )
    return model.eval()
