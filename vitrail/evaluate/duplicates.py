"""Photos that are nearly the same: re-encoded, resized, slightly cropped, shot a moment later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LIMIT = 0.05
"""How near a near-duplicate is, as a share of the mean distance between photos of the set.

Measured with DINOv2 S (class token and patch mean of the last block) on 2,500 photos of imagenette-subset, 3.1
million pairs. Within 0.05 is one pair at 224 pixels, two pictures of one product, and none at 112; the nearest
pair of different things is at 0.070 and 0.072. Altered copies of 200 of the photos found at 224 (at 112), in %:
JPEG quality 60 98 (100), brightness x1.2 88 (88), half size 66 (98), 5 % cropped 64 (40), mirrored 37 (13), grey
18 (14).
"""
BLOCK = 2048
"""Rows compared at once: 16 MB of similarities."""


@dataclass(frozen=True)
class Pair:
    """Two rows that nearly coincide."""

    first: int
    second: int
    """Greater than ``first``."""
    similarity: float
    """Cosine, at most 1."""


def near_duplicates(features: Array, limit: float = LIMIT, most: int = 10_000) -> list[Pair]:
    """Pairs of photos whose features nearly coincide, most similar first.

    The distance is 1 - cosine, measured in the mean distance of the set: features of one model lie
    within a narrow cone, those of another all around, so no cosine means the same for both.

    Args:
        features: (n, F), such as class token and patch mean of the last block, side by side.
        limit: a pair is reported up to this share of the mean distance.
        most: no more pairs than this, the most similar; a set of copies of one photo has n^2 / 2.
    """
    rows = np.asarray(features, np.float32)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    n = len(rows)
    if n < 2:
        return []
    total = rows.sum(axis=0, dtype=np.float64)
    mean = (total @ total - np.square(rows, dtype=np.float64).sum()) / (n * (n - 1))  # over pairs of different rows
    least = 1 - limit * (1 - mean)
    first, second, similarity = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    for top in range(0, n, BLOCK):
        for left in range(top, n, BLOCK):
            block = rows[top : top + BLOCK] @ rows[left : left + BLOCK].T
            i, j = np.nonzero(block >= least)
            later = i + top < j + left
            i, j = i[later], j[later]
            if not len(i):
                continue
            first, second = np.append(first, i + top), np.append(second, j + left)
            similarity = np.append(similarity, block[i, j])
            if len(first) > most:
                kept = _ranked(first, second, similarity)[:most]
                first, second, similarity = first[kept], second[kept], similarity[kept]
    order = _ranked(first, second, similarity)
    return [Pair(int(first[k]), int(second[k]), min(1.0, float(similarity[k]))) for k in order]


def _ranked(first: Array, second: Array, similarity: Array) -> Array:
    return np.lexsort((second, first, -similarity))
