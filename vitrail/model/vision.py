"""The Vision Transformer: images through the encoder (ViT section 3.1, equations 1 to 4)."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from vitrail.config import ViTConfig
from vitrail.errors import UserError
from vitrail.model.encoder import Encoder, Trace
from vitrail.model.heads import NO_CLASSIFIER, Classifier, Pooling, PreLogits
from vitrail.model.images import check_images
from vitrail.model.patches import PatchEmbedding
from vitrail.model.position import Position
from vitrail.model.resnet import ResNet
from vitrail.model.visible import Visible, picked


class VisionTransformer(nn.Module):
    """Parts in the order pixels meet them; ``build`` makes them from a configuration."""

    def __init__(
        self,
        config: ViTConfig,
        stem: ResNet | None,
        patches: PatchEmbedding,
        position: Position,
        encoder: Encoder,
        pooling: Pooling,
        prelogits: PreLogits | None,
        classifier: Classifier | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.stem = stem
        self.patches = patches
        self.tokens = nn.Parameter(torch.zeros(len(config.tokens), config.encoder.width))  # (T, D)
        # Without positions, registers that start alike would stay alike for good.
        nn.init.normal_(self.tokens.data[len(config.tokens) - config.registers :], std=0.02)
        self.position = position
        self.encoder = encoder
        self.norm = nn.LayerNorm(config.encoder.width, eps=config.encoder.norm_eps)
        self.pooling = pooling
        self.prelogits = prelogits
        self.classifier = classifier

    def forward(self, images: Tensor, trace: Trace | None = None, kept: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> logits (B, classes).

        Args:
            kept: see ``transform``.

        Raises:
            UserError: the model has no classifier, or the images are not of its size.
        """
        if self.classifier is None:  # before any work is done
            raise UserError(NO_CLASSIFIER)
        return self.classify(self.features(images, trace, kept))

    def classify(self, features: Tensor) -> Tensor:
        """Features (B, F) -> logits (B, classes).

        Raises:
            UserError: the model has no classifier.
        """
        if self.classifier is None:
            raise UserError(NO_CLASSIFIER)
        if self.prelogits is not None:
            features = self.prelogits(features)
        logits: Tensor = self.classifier(features)
        return logits

    def features(self, images: Tensor, trace: Trace | None = None, kept: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> what the head sees (B, F), before any pre-logits; for the paper's y = LN(z_L^0)."""
        return self.pool(images, self.pooling, trace, kept)

    def pool(self, images: Tensor, pooling: Pooling, trace: Trace | None = None, kept: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the features (B, F) that another pooling would see."""
        outputs = self.transform(self.embed(images), pooling.config.layers, trace, kept, pooling.read)
        pooled: Tensor = pooling(outputs, self.norm)
        return pooled

    def feature_map(self, images: Tensor, trace: Trace | None = None) -> Tensor:
        """(B, C, H, W) -> the patches' last normalised outputs (B, D, h, w)."""
        z: Tensor = self.norm(self.encode(images, 1, trace)[0])[:, len(self.config.tokens) :]  # (B, h w, D)
        return z.transpose(1, 2).reshape(len(z), -1, *self.config.grid)

    def depth(self, parameter: str) -> int:
        """The layer a parameter's name belongs to: 0 before the encoder, 1 to L its blocks, L + 1 after it."""
        of_layer = re.match(r"(?:encoder\.blocks|position\.layers)\.(\d+)\.", parameter)
        if of_layer is not None:
            return int(of_layer[1]) + 1
        after = ("norm", "pooling", "prelogits", "classifier")
        return self.config.encoder.layers + 1 if parameter.split(".")[0] in after else 0

    def encode(
        self, images: Tensor, last: int = 1, trace: Trace | None = None, kept: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> outputs of the ``last`` blocks before LayerNorm, oldest first, each (B, N, D).

        Raises:
            UserError: the images are not of the model's size.
        """
        return self.transform(self.embed(images), last, trace, kept)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the patches' embeddings x_p E (B, h w, D), which know no position yet.

        Raises:
            UserError: the images are not of the model's size.
        """
        check_images(images, self.config)
        x: Tensor = self.patches(images if self.stem is None else self.stem(images))  # (B, h w, D)
        return x

    def transform(
        self,
        x: Tensor,
        last: int = 1,
        trace: Trace | None = None,
        kept: Tensor | None = None,
        read: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Patch embeddings (B, h w, D) -> what ``encode`` gives.

        Args:
            kept: places (B, n) in raster order of the patches that take part; the others are left out,
                and N counts these and the learned tokens alone.
            read: see ``Encoder``.
        """
        position = self.position
        if kept is not None:
            position = Visible(position, kept, len(self.config.tokens), x.shape[1])
            x = picked(x, kept)  # (B, n, D)
        x = self.prepend(x)  # the embeddings themselves are not needed, nor kept, while the encoder works
        outputs: tuple[Tensor, ...] = self.encoder(x, position, last, trace, read)
        return outputs

    def prepend(self, x: Tensor) -> Tensor:
        """Patch embeddings (B, n, D) -> the same after the learned tokens (B, T + n, D)."""
        return torch.cat([self.tokens.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
