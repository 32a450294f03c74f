"""Relative positions (Shaw et al., 1803.02155; ViT appendix D.4): attention knows how far apart two patches are.

For query i and key j, e_ij = x_i W_Q (x_j W_K + a_ij)^T / sqrt(D/K), where the offset from i to j picks
a_ij from a learned table. Of the two kinds of vectors in the paper ViT keeps those of the keys, so
q_i a_ij^T / sqrt(D/K) is a bias on the logits. It is worked out by multiplying queries with the table
and picking from the products, for a block of queries at a time: neither a_ij for all pairs, which is
N x N x D/K, nor the N x N choices are ever held.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitrail.config import ViTConfig
from vitrail.model.position import Position, Relation, Taken, from_to, learned, resample_grid


class Offsets(Relation):
    """One layer's learned vectors, shared by its heads: for each offset, and for the special tokens.

    Patches stand at the cells of ``shape``, of any number of axes. Offsets along an axis count from -k
    to k, and those beyond share the last vector. Two special tokens, a special token and a patch, a
    patch and a special token have a vector each, whichever they are; tokens without positions none.
    """

    biased = True

    def __init__(self, config: ViTConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        head = config.encoder.width // config.encoder.heads
        self.shape = shape
        self.reach = tuple(length - 1 for length in shape) if config.position.clip is None else config.position.clip
        self.positioned, self.unpositioned = config.positioned, len(config.tokens) - config.positioned
        self.offsets = learned(*(2 * k + 1 for k in self.reach), head)  # (2k + 1, D/K) or (2k + 1, 2k' + 1, D/K)
        self.special = learned(3 if self.positioned else 0, head)  # class-class, class-patch, patch-class

    def bias(self, q: Tensor, queries: slice) -> Tensor:
        """(B, K, n, D/K) -> (B, K, n, N)."""
        table = torch.cat([self.offsets.flatten(0, -2), self.special, self.special.new_zeros(1, q.shape[-1])])
        products = (q * q.shape[-1] ** -0.5) @ table.to(q.dtype).transpose(-2, -1)  # (B, K, n, rows of the table)
        tokens = torch.arange(queries.start, queries.stop, device=q.device)
        rows = self._rows(tokens, len(table) - 1)  # (n, N)
        bias: Tensor = products.gather(-1, rows.expand(*products.shape[:2], -1, -1))
        return bias

    def _rows(self, queries: Tensor, zero: int) -> Tensor:
        """Which row of the table each query (n,) takes for each token: (n, N); ``zero`` is the row of zeros."""
        first = self.positioned + self.unpositioned  # patch
        class_class, class_patch, patch_class = (zero - 3, zero - 2, zero - 1)
        is_class, is_patch = (queries < self.positioned)[:, None], (queries >= first)[:, None]  # (n, 1)
        to_class = torch.where(is_class, class_class, torch.where(is_patch, patch_class, zero))  # (n, 1)
        from_patch = self._offset_rows((queries - first).clamp(min=0))  # (n, h w)
        to_patch = torch.where(is_patch, from_patch, torch.where(is_class, class_patch, zero))
        to_nobody = to_class.new_full((len(queries), self.unpositioned), zero)
        return torch.cat([to_class.expand(-1, self.positioned), to_nobody, to_patch], dim=1)

    def _offset_rows(self, queries: Tensor) -> Tensor:
        """The table's row for the offset from each of the patches (n,) to every patch: (n, h w)."""
        everyone = torch.arange(torch.Size(self.shape).numel(), device=queries.device)
        rows = torch.zeros((), dtype=torch.int64, device=queries.device)
        heres, theres = torch.unravel_index(queries, self.shape), torch.unravel_index(everyone, self.shape)
        for here, there, k in zip(heres, theres, self.reach, strict=True):
            offset = (there[None] - here[:, None]).clamp(-k, k)
            rows = rows * (2 * k + 1) + offset + k
        return rows


class Relative(Position):
    """A table of offsets for every layer."""

    def __init__(self, config: ViTConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Offsets(config, shape) for _ in range(config.encoder.layers))

    def relation(self, layer: int) -> Relation:
        """That layer's vectors."""
        own = self.layers[layer]
        assert isinstance(own, Relation)
        return own


class Relative1D(Relative):
    """By j - i in raster order, the paper's form: ``position.clip`` is (k,)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config, (config.grid[0] * config.grid[1],))

    @staticmethod
    def to_grid(old: ViTConfig, new: ViTConfig, own: Mapping[str, Tensor]) -> Taken:
        """Keep a clipped table; resample one of all offsets along its one dimension.

        Nothing is right here: an offset in raster order is a displacement only together with the grid's
        width. Resampled, displacements straight down keep their share of the picture, while kept in the
        middle they would fall between rows; those along a row come out too short.
        """
        if old.position.clip is not None:
            kept = "kept, offsets count patches"
            return {}, from_to(old.grid, new.grid, kept + _other_width(old, new))
        how, length = new.position.resampling, 2 * new.grid[0] * new.grid[1] - 1
        offsets = resample_grid(own["offsets"][:, None], (length, 1), how)[:, 0]
        return {"offsets": offsets}, from_to(old.grid, new.grid, how + _other_width(old, new))


class Relative2D(Relative):
    """By (rows, columns) from i to j: ``position.clip`` is (k, k')."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config, config.grid)

    @staticmethod
    def to_grid(old: ViTConfig, new: ViTConfig, own: Mapping[str, Tensor]) -> Taken:
        """Keep a clipped table; resample one of all offsets in 2-D, where offset zero stays in the middle."""
        if old.position.clip is not None:
            return {}, from_to(old.grid, new.grid, "kept, offsets count patches")
        how, (h, w) = new.position.resampling, new.grid
        return {"offsets": resample_grid(own["offsets"], (2 * h - 1, 2 * w - 1), how)}, from_to(old.grid, new.grid, how)


def _other_width(old: ViTConfig, new: ViTConfig) -> str:
    return "" if old.grid[1] == new.grid[1] else "; in rows of another length they lead elsewhere"
