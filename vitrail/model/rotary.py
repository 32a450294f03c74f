"""Rotary positions: queries and keys are turned by where their patches stand (2104.09864; DINOv3, 2508.10104)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vitrail.config import ViTConfig
from vitrail.model.position import Position, Relation, Taken, from_to, paired


class Rope2D(Position):
    """Axial rotation, the same in every layer: half of a head's pairs turn with the row, half with the column.

    Places are those of patch centres, from -1 to 1 along each axis, so the angles depend on the place
    in the picture and not on the number of patches. Special tokens are not turned.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.rotation = Rotation(config)

    def relation(self, layer: int) -> Relation:
        """The rotation, whatever the layer."""
        return self.rotation

    @staticmethod
    def to_grid(old: ViTConfig, new: ViTConfig, own: Mapping[str, Tensor]) -> Taken:
        """A formula of the place in the picture: worked out anew."""
        return {}, from_to(old.grid, new.grid, "computed anew")


class Rotation(Relation):
    """Pairs (i, i + D/2K) of a head's numbers, turned by 2 pi * place * base^(-4 i / (D/K))."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        head = config.encoder.width // config.encoder.heads
        exponents = torch.arange(head // 4, device="cpu", dtype=torch.float64) * 4 / head
        frequencies = 2 * math.pi * config.position.rope_base**-exponents  # (D/4K,)
        axes = []
        for length in config.grid:
            centres = (torch.arange(length, device="cpu", dtype=torch.float64) + 0.5) / length
            axes.append((2 * centres - 1)[:, None] * frequencies)  # (h, D/4K), (w, D/4K)
        angles = paired(axes[0], axes[1]).repeat(1, 2)  # (h w, D/K)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, N, D/K) each; only the patches, which come last, are turned."""
        return self._turned(q), self._turned(k)

    def _turned(self, x: Tensor) -> Tensor:
        special, patches = x[:, :, : -len(self.cos)], x[:, :, -len(self.cos) :]
        first, second = patches.chunk(2, dim=-1)  # (B, K, h w, D/2K) each
        turned = patches * self.cos + torch.cat([-second, first], dim=-1) * self.sin
        return torch.cat([special, turned.to(x.dtype)], dim=2)
