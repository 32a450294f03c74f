"""Position information, and how a table of it is taken to another grid (ViT appendix D.4; article 3.2, 5.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import Resampling, Size


class Learned1D(nn.Module):
    """One learned vector a token, in raster order: BERT's kind and ViT's choice (E_pos, equation 1).

    The patches' rows are held as a grid (h, w, D), so the shape never has to be inferred; the
    vectors of the class token and its like stand apart and are never resampled.
    """

    def __init__(self, tokens: int, grid: Size, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(tokens, width))  # (T, D)
        self.grid = nn.Parameter(torch.empty(*grid, width))  # (h, w, D)
        nn.init.normal_(self.tokens, std=0.02)
        nn.init.normal_(self.grid, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T + h w, D) -> the same with each token's position added."""
        return x + torch.cat([self.tokens, self.grid.flatten(0, 1)])  # (T + h w, D)


def resample_grid(table: Tensor, grid: Size, how: Resampling) -> Tensor:
    """Take a table of positions (h, w, D) to ``grid`` in 2-D; returns (h', w', D) of the same dtype.

    ``how`` names one of the ways the field's libraries do this, which differ by 7 to 33 % on white
    noise; the article's is ``bicubic-corner`` (section 5.1). A table that has ``grid`` already is
    returned as it is.
    """
    if table.shape[:2] == grid:
        return table
    mode, _, variant = how.partition("-")
    image = table.permute(2, 0, 1)[None].to(torch.promote_types(table.dtype, torch.float32))  # (1, D, h, w)
    if variant == "offset":
        # The +0.1 keeps floor(h * scale) from falling one short; the scale it gives is then used as it is.
        scale = ((grid[0] + 0.1) / table.shape[0], (grid[1] + 0.1) / table.shape[1])
        image = F.interpolate(image, scale_factor=scale, mode=mode)
    else:
        image = F.interpolate(
            image, size=grid, mode=mode, align_corners=variant == "corner", antialias=variant == "antialias"
        )
    return image[0].permute(1, 2, 0).contiguous().to(table.dtype)
