"""What the explorer of an inspection shows: every token's attention, small enough to travel inside a page."""

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vitrail.config import Size, size_text
from vitrail.report.figures import RAMP

Array = np.ndarray[Any, Any]

MOST = 16
"""Cells on a side of the grid that a page shows; a finer one is shown in blocks."""
NEAR = 2
"""Rows and columns around a patch, itself included, that count as near it."""
LEVELS = 15
"""The largest of the 4 bits a share is held in."""
BUDGET = 12_000_000
"""Characters of a page that the photos and their attention may take."""


@dataclass(frozen=True)
class Attention:
    """Attention of one layer as it travels; map 0 is the mean of the heads, the others are the heads themselves.

    Of each of the n shown tokens, those T special ones first, as queries:

    Attributes:
        numbers: (1 + K, n, T + 3) uint16, of 65,535: the share that each special token gets, the largest
            share of a cell, the share of all patches within ``NEAR`` rows and columns, and the sum over patches
            of share times distance, in diagonals of the image. The last two are of single patches, never of
            blocks, and 0 for special queries.
        shares: (1 + K, n, ceil(cells / 2)) uint8: the share that each cell gets, as ``LEVELS`` times the square
            root of it to the row's largest; two to a byte, the first in the lower half.
    """

    numbers: Array
    shares: Array

    @property
    def heads(self) -> int:
        """K."""
        return len(self.shares) - 1


@dataclass(frozen=True)
class TokenGrid:
    """The tokens of a model, and the cells that a page shows them in.

    Attributes:
        grid: (h, w) patches.
        cell: (height, width) of a patch in pixels of what the model sees.
        special: of the tokens before the patches in order, such as class, register, register.
    """

    grid: Size
    cell: Size
    special: tuple[str, ...] = ("class",)

    @property
    def tokens(self) -> int:
        """N, of the model."""
        return len(self.special) + self.grid[0] * self.grid[1]

    @cached_property
    def edges(self) -> tuple[list[int], list[int]]:
        """First row of every row of cells and, last, h; and likewise of columns. Blocks differ by one patch at most."""
        return _edges(self.grid[0]), _edges(self.grid[1])

    @property
    def shown(self) -> Size:
        """(rows, columns) of cells."""
        return len(self.edges[0]) - 1, len(self.edges[1]) - 1

    def sums(self, patches: Array) -> Array:
        """(..., h w) -> (..., cells): the sum over the patches of each cell."""
        rows, columns = self.edges
        each = patches.reshape(*patches.shape[:-1], *self.grid)  # (..., h, w)
        sums = np.add.reduceat(np.add.reduceat(each, rows[:-1], -2), columns[:-1], -1)
        cells: Array = sums.reshape(*patches.shape[:-1], -1)  # (..., cells)
        return cells

    def means(self, patches: Array) -> Array:
        """(..., h w) -> (..., cells): the mean over the patches of each cell."""
        cells: Array = self.sums(patches) / np.outer(*map(np.diff, self.edges)).ravel()
        return cells

    def pooled(self, attention: Array) -> Array:
        """(..., N, N) -> (..., n, n): attention to a cell is summed over its patches, from it averaged."""
        T = len(self.special)
        keys = np.concatenate([attention[..., :T], self.sums(attention[..., T:])], -1)  # (..., N, n)
        turned = np.swapaxes(keys, -1, -2)  # (..., n, N)
        coarse: Array = np.concatenate([turned[..., :T], self.means(turned[..., T:])], -1).swapaxes(-1, -2)
        return coarse

    def pack(self, attention: Array) -> Attention:
        """(K, N, N), rows that sum to 1, of one layer; a rollout is one head.

        Raises:
            ValueError: the shape is not that of these tokens.
        """
        if attention.ndim != 3 or attention.shape[1:] != (self.tokens, self.tokens):
            raise ValueError(f"Attention (K, {self.tokens}, {self.tokens}) is wanted, not {attention.shape}.")
        maps = np.asarray(attention, np.float32)
        maps = np.concatenate([maps.mean(0, keepdims=True), maps])  # (1 + K, N, N)
        T = len(self.special)
        among, (distances, near) = maps[:, T:, T:], self._distances  # (maps, h w, h w)
        of_patches = np.stack([(among * near).sum(-1), np.einsum("kij,ij->ki", among, distances)])  # (2, maps, h w)
        whole = np.zeros((2, len(maps), T + self.shown[0] * self.shown[1]))
        whole[..., T:] = self.means(of_patches)
        coarse = self.pooled(maps)  # (maps, n, n)
        largest = coarse[..., T:].max(-1, keepdims=True)
        numbers = np.concatenate([coarse[..., :T], largest, np.moveaxis(whole, 0, -1)], -1)
        levels = np.rint(LEVELS * np.sqrt(coarse[..., T:] / np.maximum(largest, np.finfo(np.float32).tiny))).astype(
            np.uint8
        )
        levels = np.pad(levels, ((0, 0), (0, 0), (0, levels.shape[-1] % 2)))
        return Attention(
            np.rint(65535 * np.clip(numbers, 0, 1)).astype(np.uint16), levels[..., 0::2] | levels[..., 1::2] << 4
        )

    @cached_property
    def _distances(self) -> tuple[Array, Array]:
        """(h w, h w) between the centres of patches, in diagonals of the image; and whether they are near."""
        places = np.indices(self.grid, np.float32).reshape(2, -1)  # (2, h w)
        rows, columns = np.abs(places[:, :, None] - places[:, None])  # (h w, h w) each
        near: Array = np.maximum(rows, columns) <= NEAR
        return np.hypot(rows * self.cell[0], columns * self.cell[1]) / np.float32(self.diagonal), near

    @property
    def diagonal(self) -> float:
        """Of the image, in pixels."""
        return float(np.hypot(self.grid[0] * self.cell[0], self.grid[1] * self.cell[1]))


@dataclass(frozen=True)
class ExplorerPhoto:
    """A photo that was looked at.

    Attributes:
        uri: ``data:image/jpeg;base64,...`` of exactly what the model saw; twice its resolution looks better.
        layers: L, from the first to the last.
        rollout: as a layer with one head.
    """

    name: str
    uri: str
    layers: Sequence[Attention]
    rollout: Attention | None = None


@dataclass(frozen=True)
class Explorer:
    """Photos, and the cosine similarity of the patches' positions (h w, h w) where they are vectors."""

    tokens: TokenGrid
    photos: Sequence[ExplorerPhoto]
    similarity: Array | None = None


@dataclass(frozen=True)
class Packed:
    """An explorer as a page holds it: what the script is told, the attention of each photo, and what to admit."""

    told: dict[str, Any]
    photos: list[tuple[ExplorerPhoto, str]]
    notes: list[str]


def packed(explorer: Explorer, budget: int = BUDGET) -> Packed:
    """As many photos, in order, as ``budget`` characters hold; with the mean of heads alone if not one fits."""
    tokens, notes = explorer.tokens, []
    (rows, columns), (h, w) = tokens.edges, tokens.grid
    if tokens.shown != tokens.grid:
        high, wide = _span(rows), _span(columns)
        block = f"{high} patches a side" if high == wide else f"{high} x {wide} patches"
        notes.append(
            f"The {size_text((h, w))} patches are shown in {size_text(tokens.shown)} blocks of {block}: attention to a "
            "block is the sum over its patches, attention from it their mean. Distances are those of single patches."
        )
    heads = max((photo.layers[0].heads for photo in explorer.photos), default=1)
    photos, merged = _within(explorer.photos, budget, slice(1, None)), False
    if not photos and heads > 1:
        photos, merged = _within(explorer.photos, budget, slice(1)), True
        notes.append(f"To keep this page small, the {heads} heads of a layer are shown as their mean alone.")
    if left := len(explorer.photos) - len(photos):
        notes.append(f"To keep this page small, {left} more {'photo is' if left == 1 else 'photos are'} left out.")
    told = {
        "rows": rows,
        "columns": columns,
        "cell": tokens.cell,
        "diagonal": tokens.diagonal,
        "near": NEAR,
        "special": _named(tokens.special),
        "layers": len(photos[0][0].layers) if photos else 0,
        "heads": heads,
        "maps": 1 if merged else heads,
        "rollout": bool(photos) and photos[0][0].rollout is not None,
        "photos": [photo.name for photo, _ in photos],
        "ramp": RAMP,
        "similarity": None if explorer.similarity is None else _similarity(tokens, explorer.similarity),
    }
    return Packed(told, photos, notes)


def _edges(patches: int) -> list[int]:
    blocks = -(-patches // -(-patches // MOST))  # as many as of the smallest blocks that are few enough
    return [number * patches // blocks for number in range(blocks + 1)]


def _span(edges: list[int]) -> str:
    sizes = sorted(set(np.diff(edges).tolist()))
    return " or ".join(map(str, sizes))


def _within(photos: Sequence[ExplorerPhoto], budget: int, maps: slice) -> list[tuple[ExplorerPhoto, str]]:
    """Photos, in order, whose pictures and packed ``maps`` of every layer, and rollout after them, stay within."""
    found = []
    for photo in photos:
        parts = [Attention(layer.numbers[maps], layer.shares[maps]) for layer in photo.layers]
        if photo.rollout is not None:
            parts.append(Attention(photo.rollout.numbers[:1], photo.rollout.shares[:1]))
        numbers = b"".join(part.numbers.astype("<u2").tobytes() for part in parts)
        text = _text(numbers + b"".join(part.shares.tobytes() for part in parts))
        budget -= len(text) + len(photo.uri)
        if budget < 0:
            break
        found.append((photo, text))
    return found


def _similarity(tokens: TokenGrid, similarity: Array) -> dict[str, Any]:
    """Means over pairs of cells (cells, cells), in 127ths as int8."""
    coarse = tokens.means(tokens.means(similarity).T).T  # (cells, cells)
    return {"lowest": float(coarse.min()), "values": _text(np.rint(127 * np.clip(coarse, -1, 1)).astype(np.int8))}


def _text(data: bytes | Array) -> str:
    return base64.b64encode(zlib.compress(data if isinstance(data, bytes) else data.tobytes(), 9)).decode("ascii")


def _named(special: Sequence[str]) -> list[dict[str, str]]:
    """A name of its own for every special token; of those that bear the same one, with a number."""
    counts, seen, found = Counter(special), Counter[str](), []
    for kind in special:
        seen[kind] += 1
        found.append({"kind": kind, "name": f"{kind} {seen[kind]}" if counts[kind] > 1 else kind})
    return found
