"""Masked autoencoder: pixels of hidden patches from the visible ones (MAE, 2111.06377)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitrail.config import RELATIVE, HeadConfig, PositionConfig, Preprocessing, ViTConfig
from vitrail.data.augment import augment
from vitrail.errors import UserError
from vitrail.model.build import seeded
from vitrail.model.encoder import Encoder
from vitrail.model.patches import flatten
from vitrail.model.position import SinCos2D, learned
from vitrail.model.visible import picked
from vitrail.model.vision import VisionTransformer
from vitrail.objectives.masking import CROP_AND_FLIP, check, shuffled
from vitrail.objectives.objective import Objective
from vitrail.settings import Augmentation


class MAE(Objective[VisionTransformer]):
    """The encoder sees a quarter of the patches; a small decoder draws the others, which are compared with the image.

    Args:
        config: of the model; positions of every kind but the relative ones, at any place.
        hidden: share of the patches that the encoder does not see (section 3, "masking"; figure 5).
        layers, width, heads: of the decoder, whose blocks are otherwise those of the model without
            LayerScale, dropout and drop path (section 4, table 1; appendix A.1).
        normalised: whether the mean and deviation of each patch's own pixels are taken out of what is
            to be drawn (table 1d).

    Raises:
        UserError: relative positions, a stem, one patch alone, or a share that hides none or all.
    """

    def __init__(
        self,
        config: ViTConfig,
        how: Preprocessing,
        policy: Augmentation = CROP_AND_FLIP,
        hidden: float = 0.75,
        layers: int = 8,
        width: int = 512,
        heads: int = 16,
        normalised: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if config.position.kind in RELATIVE:
            raise UserError(
                f"MAE leaves patches out, which positions of kind {config.position.kind} cannot: "
                "choose absolute or rotary ones."
            )
        self.patches = check(config)
        self.visible = int(self.patches * (1.0 - hidden))  # rounded down, as in the published code
        if not 1 <= self.visible < self.patches:
            raise UserError(
                f"Of {self.patches} patches {self.visible} would be visible with {hidden:g} of them hidden: "
                "choose another share or smaller patches, so that some are and some are not."
            )
        self.config = config
        self.how = how
        self.policy = policy
        self.normalised = normalised
        with seeded(seed):
            self.decoder = Decoder(config, layers, width, heads)
        self.modules["mae"] = self.decoder

    def views(self, image: Image.Image, chance: np.random.Generator) -> Tensor:
        """A picture -> (C, H, W), cropped and flipped."""
        return augment(image, self.how, self.policy, chance)

    def loss(
        self, model: VisionTransformer, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
    ) -> tuple[Tensor, dict[str, float]]:
        """Images (B, C, H, W) -> mean squared error over the hidden patches; there is nothing else to tell."""
        order = shuffled(chances, self.patches).to(views.device)  # (B, h w)
        kept, hidden = order[:, : self.visible], order[:, self.visible :]
        z = model.norm(model.transform(model.embed(views), kept=kept)[0])  # (B, T + n, D)
        drawn = picked(self.decoder(z, kept), hidden).float()  # (B, h w - n, P P C)
        truth = picked(targets(views, self.config, self.normalised), hidden)
        return (drawn - truth).square().mean(), {}


class Decoder(nn.Module):
    """Outputs of the visible patches, [mask] for the others, sin-cos positions, blocks, and a linear map to pixels."""

    def __init__(self, config: ViTConfig, layers: int, width: int, heads: int) -> None:
        super().__init__()
        blocks = replace(
            config.encoder,
            layers=layers,
            width=width,
            heads=heads,
            mlp_width=4 * width,
            layer_scale=None,
            dropout=0.0,
            drop_path=0.0,
        )
        own = replace(config, encoder=blocks, position=PositionConfig("sincos-2d"), head=HeadConfig(("mean",)))
        self.special = len(config.tokens)
        self.patches = config.grid[0] * config.grid[1]
        self.embed = nn.Linear(config.encoder.width, width)
        self.mask = learned(width)  # (D',)
        self.position = SinCos2D(own)
        self.encoder = Encoder(blocks)
        self.norm = nn.LayerNorm(width, eps=blocks.norm_eps)
        self.pixels = nn.Linear(width, config.channels * config.cell[0] * config.cell[1])
        for layer in (self.embed, self.pixels):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, kept: Tensor) -> Tensor:
        """Outputs (B, T + n, D) of the learned tokens and of the patches at ``kept`` (B, n) -> (B, h w, P P C)."""
        special, visible = self.embed(z).tensor_split([self.special], dim=1)  # (B, T, D'), (B, n, D')
        masks = self.mask.to(visible.dtype).expand(len(z), self.patches, -1)  # (B, h w, D')
        x = masks.scatter(1, kept.unsqueeze(-1).expand_as(visible), visible)
        x = self.encoder(torch.cat([special, x], dim=1), self.position)[0]  # (B, T + h w, D')
        drawn: Tensor = self.pixels(self.norm(x[:, self.special :]))
        return drawn


def targets(views: Tensor, config: ViTConfig, normalised: bool) -> Tensor:
    """Images (B, C, H, W) -> what is to be drawn (B, h w, P P C), channels fastest as in the published weights."""
    pixels = flatten(views.float(), config.cell, "hwc")  # (B, h w, P P C)
    if not normalised:
        return pixels
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return (pixels - mean) / (variance + 1e-6).sqrt()
