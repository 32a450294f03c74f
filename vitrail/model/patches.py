"""Image -> patch tokens (ViT section 3.1; article 2.1 and 3.1)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from vitrail.config import Size


class PatchEmbedding(nn.Module):
    """D kernels of P x P x C with stride P and no padding: the linear map E on flattened patches."""

    def __init__(self, channels: int, width: int, patch: Size) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        # Flax's default for convolutions, which ViT was trained with: variance 1 / fan-in.
        # The cut at two deviations takes some of it away, which the constant puts back.
        std = math.sqrt(1.0 / (channels * patch[0] * patch[1])) / 0.87962566
        nn.init.trunc_normal_(self.projection.weight, std=std, a=-2 * std, b=2 * std)
        assert self.projection.bias is not None
        nn.init.zeros_(self.projection.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h w, D), patches in raster order."""
        grid: Tensor = self.projection(images)  # (B, D, h, w)
        return grid.flatten(2).transpose(1, 2)
