"""Weighted k-nearest-neighbour classification of frozen features, as DINO judges them (2104.14294, section 3.2).

Nothing is trained: an image is what the k images most like it are. Likeness is the cosine s of two features, and a
neighbour's vote weighs exp(s / 0.07) (1805.01978, section 3.4, whose temperature that is).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.errors import UserError
from vitrail.evaluate.probe import check_finite

Array = np.ndarray[Any, Any]

NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
"""Values of k to choose among; 20 was best in most of DINO's runs."""
TEMPERATURE = 0.07
BLOCK = 2**23
"""How many cosines are held at a time."""


@dataclass(frozen=True)
class Choice:
    """What leaving each image out in turn says about one value of k."""

    k: int
    accuracy: float


@dataclass(frozen=True)
class Neighbours:
    """A classifier that remembers n features."""

    features: Array
    """(n, F) float32, each of length 1."""
    labels: Array
    """(n,)"""
    classes: int
    k: int
    left_out: tuple[Choice, ...]
    """How ``k`` was chosen; empty where it was given."""

    def logits(self, features: Array, progress: Callable[[int, int], None] | None = None) -> Array:
        """(m, F) -> (m, K) logarithms of each class's share of the votes.

        A class without a neighbour among the k has about -87, the logarithm of float32's smallest normal number.

        Args:
            progress: called with (images done, images in all).

        Raises:
            UserError: features that are not finite.
        """
        queries = np.asarray(features)
        if queries.ndim != 2 or queries.shape[1] != self.features.shape[1]:
            raise ValueError(f"features {queries.shape} do not fit those remembered, {self.features.shape}")
        check_finite(queries)
        queries = _of_length_1(queries)
        result = np.empty((len(queries), self.classes), np.float32)
        for rows, cosines in _blocks(queries, self.features):
            result[rows] = np.log(np.maximum(self._shares(cosines, self.k), np.finfo(np.float32).tiny))
            if progress is not None:
                progress(rows.stop, len(queries))
        return result

    def unseen(self) -> Array:
        """(n, K) each class's share of the votes for every image remembered, which has none for itself.

        Raises:
            ValueError: there is but one image.
        """
        if len(self.labels) < 2:
            raise ValueError("a single image has no neighbour")
        result = np.empty((len(self.labels), self.classes), np.float32)
        for rows, cosines in _blocks(self.features, self.features):
            _without_own(cosines, rows)
            result[rows] = self._shares(cosines, min(self.k, len(self.labels) - 1))
        return result

    def _shares(self, cosines: Array, k: int) -> Array:
        (votes,) = _votes(cosines, self.labels, self.classes, (k,))
        shares: Array = votes / votes.sum(axis=1, keepdims=True)
        return shares


def fit_neighbours(
    features: Array,
    labels: Array,
    classes: int,
    k: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Neighbours:
    """Remember features, and choose k by leaving each image out in turn.

    The k whose accuracy is the highest is taken, of equals the largest, whose shares of votes say more.

    Args:
        features: (n, F).
        labels: (n,) integers 0 to ``classes`` - 1.
        k: how many neighbours vote, at most n; None: whichever of ``NEIGHBOURS`` is best.
        progress: called with (images left out, images in all).

    Raises:
        UserError: no images, features that are not finite, k below 1.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features {features.shape} and labels {labels.shape} do not fit together")
    if not len(labels):
        raise UserError("There is no image to learn from: name a folder that holds some.")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} are not those of {classes} classes")
    if k is not None and k < 1:
        raise UserError(f"k must be at least 1, not {k}: 20 is usual.")
    check_finite(features)
    features = _of_length_1(features)
    if k is not None or len(labels) == 1:
        return Neighbours(features, labels, classes, min(k or 1, len(labels)), ())
    tried = tuple(dict.fromkeys(min(k, len(labels) - 1) for k in NEIGHBOURS))
    right = np.zeros(len(tried), np.int64)
    for rows, cosines in _blocks(features, features):
        _without_own(cosines, rows)
        for i, votes in enumerate(_votes(cosines, labels, classes, tried)):
            right[i] += np.count_nonzero(votes.argmax(axis=1) == labels[rows])
        if progress is not None:
            progress(rows.stop, len(labels))
    choices = tuple(Choice(k, float(count / len(labels))) for k, count in zip(tried, right, strict=True))
    best = max(choices, key=lambda choice: (choice.accuracy, choice.k))
    return Neighbours(features, labels, classes, best.k, choices)


def _of_length_1(features: Array) -> Array:
    """(n, F) as float32 of length 1; zeros stay zeros, and so are equally unlike everything."""
    features = features.astype(np.float32)
    length = np.sqrt(np.einsum("nf,nf->n", features, features, dtype=np.float64))[:, None]
    features /= np.where(length > 0, length, 1)
    return features


def _blocks(queries: Array, features: Array) -> Iterator[tuple[slice, Array]]:
    """Cosines (b, n) of some queries at a time with all features."""
    size = max(1, BLOCK // len(features))
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        yield rows, queries[rows] @ features.T


def _without_own(cosines: Array, rows: slice) -> None:
    """No image is its own neighbour."""
    cosines[np.arange(len(cosines)), np.arange(rows.start, rows.stop)] = -np.inf


def _votes(cosines: Array, labels: Array, classes: int, ks: Sequence[int]) -> Iterator[Array]:
    """(b, n) cosines -> for each of ascending ``ks`` (b, K) weights of the k nearest's votes; the nearest's is 1."""
    nearest = np.argpartition(cosines, -ks[-1], axis=1)[:, -ks[-1] :]
    likeness = np.take_along_axis(cosines, nearest, axis=1)
    order = np.argsort(-likeness, axis=1)
    nearest, likeness = (np.take_along_axis(part, order, axis=1) for part in (nearest, likeness))  # (b, k)
    weights = np.exp((likeness - likeness[:, :1]) / TEMPERATURE)
    votes = np.zeros((len(cosines), classes))
    rows = np.arange(len(cosines))[:, None]
    for before, k in zip((0, *ks[:-1]), ks, strict=True):
        np.add.at(votes, (rows, labels[nearest[:, before:k]]), weights[:, before:k])
        yield votes
