"""Position information, and how it is taken to another grid (ViT appendix D.4; article 3.2, 5.1).

A scheme is a ``Position``: it may add something to the tokens before a block, and it may do something
inside a block's attention. The encoder asks for both and knows no scheme. Here are the ones that add;
``relative.py`` and ``rotary.py`` hold those that act inside attention.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import Resampling, Size, ViTConfig, size_text

Taken = tuple[dict[str, Tensor], str]
"""A scheme's tensors on another grid, those that changed, and a note of how; an empty note: nothing to say."""


class Relation(nn.Module):
    """What a position scheme does inside one layer's attention; by itself, nothing."""

    biased = False
    """Whether ``bias`` gives something: attention without stays fused in one piece."""

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, (B, K, N, D/K) each -> the same, turned to where they stand."""
        return q, k

    def bias(self, q: Tensor, queries: slice) -> Tensor | None:
        """What is added to the logits of the block ``queries`` of q's tokens, (B, K, n, D/K) -> (B, K, n, N)."""
        return None


class Position(nn.Module):
    """A position scheme, made from a model's configuration."""

    def add(self, x: Tensor, layer: int) -> Tensor:
        """(B, N, D) -> (B, N, D), as block ``layer`` shall see it."""
        return x

    def relation(self, layer: int) -> Relation | None:
        """What happens inside the attention of block ``layer``; None: nothing."""
        return None

    @staticmethod
    def to_grid(old: ViTConfig, new: ViTConfig, own: Mapping[str, Tensor]) -> Taken:
        """Take one layer's set of the scheme's tensors, ``own``, from the grid of ``old`` to that of ``new``."""
        return {}, ""


class NoPosition(Position):
    """None at all: a bag of patches (ViT table 8, first row)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()


class Absolute(Position):
    """One vector a token, added before the first block or, where it is ``shared``, before every one."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.shared = config.position.place == "shared"
        self.unpositioned = len(config.tokens) - config.positioned

    @abstractmethod
    def rows(self) -> tuple[Tensor, Tensor]:
        """Vectors of the tokens that have one (T, D) and of the patches in raster order (h w, D)."""

    def add(self, x: Tensor, layer: int) -> Tensor:
        """(B, N, D) -> the same with each token's position added; the special tokens without come after those with."""
        if layer > 0 and not self.shared:
            return x
        tokens, patches = self.rows()
        return x + torch.cat([tokens, tokens.new_zeros(self.unpositioned, tokens.shape[1]), patches])  # (N, D)


class EveryLayer(Position):
    """What is added, anew before every block: each has a scheme of its own."""

    def __init__(self, layers: Sequence[Position]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def add(self, x: Tensor, layer: int) -> Tensor:
        """(B, N, D) -> the same with the positions of that layer."""
        own = self.layers[layer]
        assert isinstance(own, Position)
        return own.add(x, 0)


class Learned1D(Absolute):
    """One learned vector a token, in raster order: BERT's kind and ViT's choice (E_pos, equation 1).

    The patches' rows are held as a grid (h, w, D), so the shape never has to be inferred; the
    vectors of the class token and its like stand apart and are never resampled.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.tokens = learned(config.positioned, config.encoder.width)  # (T, D)
        self.grid = learned(*config.grid, config.encoder.width)  # (h, w, D)

    def rows(self) -> tuple[Tensor, Tensor]:
        """(T, D) and (h w, D)."""
        return self.tokens, self.grid.flatten(0, 1)

    @staticmethod
    def to_grid(old: ViTConfig, new: ViTConfig, own: Mapping[str, Tensor]) -> Taken:
        """Resample the patches' vectors in 2-D (ViT section 3.2)."""
        how = new.position.resampling
        return {"grid": resample_grid(own["grid"], new.grid, how)}, from_to(old.grid, new.grid, how)


class Sinusoidal1D(Absolute):
    """sin and cos of the place in the sequence, class token first (1706.03762, section 3.5)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        h, w = config.grid
        places = torch.arange(config.positioned + h * w, device="cpu", dtype=torch.float64)
        sin, cos = waves(places, config.encoder.width)
        table = torch.stack([sin, cos], dim=-1).flatten(1).float()  # (T + h w, D), sin and cos by turns
        self.positioned = config.positioned
        self.register_buffer("table", table, persistent=False)
        self.table: Tensor

    def rows(self) -> tuple[Tensor, Tensor]:
        """(T, D) and (h w, D)."""
        return self.table[: self.positioned], self.table[self.positioned :]

    @staticmethod
    def to_grid(old: ViTConfig, new: ViTConfig, own: Mapping[str, Tensor]) -> Taken:
        """A formula: worked out anew, so a patch keeps its number in the sequence, not its place in the picture."""
        return {}, from_to(old.grid, new.grid, "computed anew")


class Learned2D(Absolute):
    """Two learned tables, of rows and of columns, each D/2 wide, concatenated (ViT appendix D.4)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        (h, w), width = config.grid, config.encoder.width
        self.tokens = learned(config.positioned, width)  # (T, D)
        self.down = learned(h, width // 2)  # (h, D/2)
        self.across = learned(w, width // 2)  # (w, D/2)

    def rows(self) -> tuple[Tensor, Tensor]:
        """(T, D) and (h w, D)."""
        return self.tokens, paired(self.down, self.across)

    @staticmethod
    def to_grid(old: ViTConfig, new: ViTConfig, own: Mapping[str, Tensor]) -> Taken:
        """Resample each table along its one dimension."""
        how, (h, w) = new.position.resampling, new.grid
        down = resample_grid(own["down"][:, None], (h, 1), how)[:, 0]  # (h, D/2)
        across = resample_grid(own["across"][None], (1, w), how)[0]  # (w, D/2)
        return {"down": down, "across": across}, from_to(old.grid, new.grid, how)


class SinCos2D(Absolute):
    """sin and cos of column and row, a quarter of the width each; zero for the special tokens (MAE, 2111.06377).

    MAE's published code puts the column's half before the row's, and its weights have learned it so.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.positioned = config.positioned
        halves = []
        for length in config.grid:
            places = torch.arange(length, device="cpu", dtype=torch.float64)
            halves.append(torch.cat(waves(places, config.encoder.width // 2), dim=1))  # (h, D/2), (w, D/2)
        table = paired(halves[0], halves[1]).roll(config.encoder.width // 2, dims=1)  # (h w, D), columns first
        self.register_buffer("table", table.float(), persistent=False)
        self.table: Tensor

    def rows(self) -> tuple[Tensor, Tensor]:
        """Zeros (T, D) and (h w, D)."""
        return self.table.new_zeros(self.positioned, self.table.shape[1]), self.table

    @staticmethod
    def to_grid(old: ViTConfig, new: ViTConfig, own: Mapping[str, Tensor]) -> Taken:
        """A formula of row and column, counted in patches: worked out anew."""
        return {}, from_to(old.grid, new.grid, "computed anew")


def learned(*shape: int) -> nn.Parameter:
    """A table to be learned; it starts as noise of deviation 0.02, as BERT's and ViT's do."""
    return nn.Parameter(nn.init.normal_(torch.empty(*shape), std=0.02))


def waves(places: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """sin and cos of (n,) places at ``width`` / 2 frequencies from 1 down towards 1/10000, (n, width/2) each."""
    exponents = torch.arange(width // 2, device=places.device, dtype=places.dtype) / (width // 2)
    angles = places[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return angles.sin(), angles.cos()


def paired(down: Tensor, across: Tensor) -> Tensor:
    """A vector for each row (h, D/2) and for each column (w, D/2) -> one for each patch (h w, D)."""
    h, w = len(down), len(across)
    return torch.cat([down[:, None].expand(-1, w, -1), across[None].expand(h, -1, -1)], dim=2).flatten(0, 1)


def from_to(old: Size, new: Size, how: str) -> str:
    """``14x14 -> 24x24 (how)``."""
    return f"{size_text(old)} -> {size_text(new)} ({how})"


def resample_grid(table: Tensor, grid: Size, how: Resampling) -> Tensor:
    """Take a table of positions (h, w, D) to ``grid`` in 2-D; returns (h', w', D) of the same dtype.

    ``how`` names one of the ways the field's libraries do this, which differ by 7 to 33 % on white
    noise; the article's is ``bicubic-corner`` (section 5.1). A table that has ``grid`` already is
    returned as it is.
    """
    if table.shape[:2] == grid:
        return table
    if how in ("zeros-raster", "zeros-corner"):
        return _filled(table, grid, raster=how == "zeros-raster")
    mode, _, variant = how.partition("-")
    image = table.permute(2, 0, 1)[None].to(torch.promote_types(table.dtype, torch.float32))  # (1, D, h, w)
    if variant == "offset":
        # The +0.1 keeps floor(h * scale) from falling one short; the scale it gives is then used as it is.
        scale = ((grid[0] + 0.1) / table.shape[0], (grid[1] + 0.1) / table.shape[1])
        image = F.interpolate(image, scale_factor=scale, mode=mode)
    elif variant == "antialias":
        image = antialiased(image, grid)
    else:
        image = F.interpolate(image, size=grid, mode=mode, align_corners=variant == "corner")
    return image[0].permute(1, 2, 0).contiguous().to(table.dtype)


def _filled(table: Tensor, grid: Size, raster: bool) -> Tensor:
    """A table (h, w, D) cut to ``grid``, or zeros beyond it: in raster order, or in its rows and columns."""
    result = table.new_zeros(*grid, table.shape[-1])  # (h', w', D)
    if raster:
        kept = min(table.shape[0] * table.shape[1], grid[0] * grid[1])
        result.view(-1, table.shape[-1])[:kept] = table.flatten(0, 1)[:kept]
    else:
        rows, columns = (min(old, new) for old, new in zip(table.shape[:2], grid, strict=True))
        result[:rows, :columns] = table[:rows, :columns]
    return result


def antialiased(image: Tensor, size: Size) -> Tensor:
    """Bicubic resizing with antialiasing, (B, C, H, W) -> (B, C, *size).

    PyTorch (2.14 still) gives wrong numbers in all rows but the first where the result is one column
    wide; one row is right, so there the image is laid on its side.
    """
    if size[1] == 1:
        return F.interpolate(image.mT, size=(1, size[0]), mode="bicubic", antialias=True).mT
    return F.interpolate(image, size=size, mode="bicubic", antialias=True)
