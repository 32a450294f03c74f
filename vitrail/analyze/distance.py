"""Mean attention distance (ViT section 4.5, figure 7 right and appendix D.7; article 6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.analyze.moments import Moments
from vitrail.analyze.stream import Kind, Statistic
from vitrail.config import Size, ViTConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def patch_distances(grid: Size, cell: Size) -> Tensor:
    """Distances in pixels between the patches of a grid (h, w) of cells (H/h, W/w): (h w, h w), float32."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten() * cell[0], columns.flatten() * cell[1]], dim=1).double()  # (h w, 2)
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").float()


@dataclass(frozen=True)
class AttentionDistance(Finding):
    """How far attention reaches: per image d = mean over queries i of sum_j a_ij |p_i - p_j|, then over images.

    Queries and keys are patches. What a patch gives to special tokens goes nowhere in the picture, so the
    rest is taken as all: a_ij is divided by the sum over patches j.
    """

    name: ClassVar[str] = "attention-distance"

    mean: Array
    """(L, K) in pixels, over images."""
    low: Array
    high: Array
    """(L, K): the 95 % t interval of ``mean`` over images; nan for a single image."""
    uniform: float
    """Pixels: the distance of attention that is the same everywhere."""
    images: int

    @property
    def normalised(self) -> Array:
        """(L, K): ``mean`` as a share of uniform attention's."""
        share: Array = self.mean / self.uniform if self.uniform else np.full_like(self.mean, np.nan)
        return share

    def table(self) -> dict[str, Array]:
        """A row for each layer and head, counted from 1."""
        layers, heads = self.mean.shape
        return {
            "layer": np.repeat(np.arange(1, layers + 1), heads),
            "head": np.tile(np.arange(1, heads + 1), layers),
            "pixels": self.mean.ravel(),
            "low": self.low.ravel(),
            "high": self.high.ravel(),
            "of_uniform": self.normalised.ravel(),
        }

    def summary(self) -> dict[str, Any]:
        """By layer, and whether it grows with depth (Spearman's rank correlation)."""
        by_layer = self.mean.mean(axis=1)
        depth = np.arange(len(by_layer))
        enough = len(depth) > 2 and float(np.ptp(by_layer)) > 0
        return {
            "images": self.images,
            "uniform_pixels": self.uniform,
            "layer_mean_pixels": by_layer.tolist(),
            "layer_least_pixels": self.mean.min(axis=1).tolist(),
            "layer_most_pixels": self.mean.max(axis=1).tolist(),
            "rank_correlation_with_depth": float(stats.spearmanr(depth, by_layer).statistic) if enough else None,
        }

    @canvas.styled
    def plot(self) -> Figure:
        """A dot for each head at its layer, the layers' means, and the distance of uniform attention."""
        drawn, (axes,) = canvas.figure(size=(5.2, 3.4))
        canvas.heads(axes, self.mean, self.low, self.high, canvas.BLUE, "a head")
        depth = np.arange(1, len(self.mean) + 1)
        axes.plot(depth, self.mean.mean(axis=1), color=canvas.AMBER, lw=2, label="mean of the layer")
        axes.axhline(self.uniform, color=canvas.SOFT, lw=1, ls=(0, (5, 4)), label="uniform attention")
        axes.set(ylabel="mean attention distance, pixels", title="Attention distance")
        axes.set_ylim(0, 1.12 * max(self.uniform, float(self.mean.max())) or 1.0)  # 0 of a single patch
        axes.legend(loc="lower right", fontsize=8)
        return drawn


class MeanDistance(Statistic):
    """Accumulates ``AttentionDistance`` over any number of images; of each batch nothing is kept."""

    def __init__(self, config: ViTConfig) -> None:
        self.layers, self.heads = config.encoder.layers, config.encoder.heads
        self.special = len(config.tokens)
        self.attention = range(self.layers)
        self.distances = patch_distances(config.grid, config.cell)
        self.uniform = float(self.distances.mean(dtype=torch.float64))
        self.moments = Moments((self.layers, self.heads))
        self.batch: list[Tensor] = []

    def receive(self, kind: Kind, layer: int, values: Tensor) -> None:
        """Attention weights (B, K, N, N)."""
        weights = values[:, :, self.special :, self.special :].float()  # (B, K, h w, h w)
        self.distances = self.distances.to(weights.device)
        far = (weights * self.distances).sum(dim=-1) / weights.sum(dim=-1).clamp(min=1e-12)  # (B, K, h w)
        self.batch.append(far.mean(dim=-1))

    def close(self) -> None:
        """The batch's distances, (B, L, K), go into the mean."""
        self.moments.add(torch.stack(self.batch, dim=1))
        self.batch = []

    def finding(self) -> AttentionDistance:
        """What has come together."""
        low, high = self.moments.interval()
        return AttentionDistance(self.moments.mean, low, high, self.uniform, self.moments.count)
