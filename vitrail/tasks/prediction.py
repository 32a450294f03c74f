"""Pictures -> labels or features, a batch at a time and in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vitrail.config import ModelCard, Preprocessing
from vitrail.data.batches import batches
from vitrail.errors import UserError
from vitrail.runtime.predictor import Predictor

Result = TypeVar("Result")
Labels = tuple[tuple[str, float], ...]
"""Class names and probabilities, the likeliest first."""


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a picture, best first, or the reason there are none."""

    path: Path
    labels: Labels = ()
    reason: str | None = None
    """Why the picture could not be read."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        if self.reason is not None:
            return {"path": str(self.path), "reason": self.reason}
        labels = [{"label": name, "probability": probability} for name, probability in self.labels]
        return {"path": str(self.path), "labels": labels}


@dataclass(frozen=True)
class Embedding:
    """The features of a picture, or the reason there are none."""

    path: Path
    features: np.ndarray | None = None
    """(F,) float32."""
    reason: str | None = None


def predictions(
    predictor: Predictor, card: ModelCard, classes: Sequence[str], paths: Iterable[Path], top: int, batch_size: int
) -> Iterator[Prediction]:
    """One prediction a path, in the order of ``paths``; holds two batches at most.

    Raises:
        UserError: ``top`` is not at least 1.
    """
    if top < 1:
        raise UserError(f"top must be at least 1, not {top}.")

    def labels_of(images: Tensor) -> list[Labels]:
        return likeliest(predictor.logits(images)[1], card, classes, top)

    for path, labels, reason in _rows(labels_of, card.preprocessing, paths, batch_size, predictor.quick):
        yield Prediction(path, labels or (), reason)


def likeliest(logits: Tensor, card: ModelCard, classes: Sequence[str], top: int) -> list[Labels]:
    """(B, classes) -> for each of the B, its ``top`` classes, or all there are, at the card's temperature."""
    best = torch.softmax(logits / card.temperature, dim=-1).topk(min(top, len(classes)), dim=-1)  # (B, top)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [tuple((classes[label], value) for label, value in zip(*row, strict=True)) for row in rows]


def embeddings(predictor: Predictor, how: Preprocessing, paths: Iterable[Path], batch_size: int) -> Iterator[Embedding]:
    """One embedding a path, in the order of ``paths``; holds two batches at most."""

    def features(images: Tensor) -> np.ndarray:
        return predictor.features(images).numpy()

    for path, row, reason in _rows(features, how, paths, batch_size, predictor.quick):
        yield Embedding(path, row, reason)


def _rows(
    function: Callable[[Tensor], Iterable[Result]],
    how: Preprocessing,
    paths: Iterable[Path],
    batch_size: int,
    quick: bool,
) -> Iterator[tuple[Path, Result | None, str | None]]:
    """Each path with its own of what ``function`` gives for the batch (B, C, H, W), or with a reason."""
    for batch in batches(paths, how, batch_size, quick=quick):
        results = iter(function(batch.images)) if batch.index else iter(())
        reasons = dict(batch.failures)
        for position, path in enumerate(batch.paths, batch.start):
            reason = reasons.get(position)
            yield path, None if position in reasons else next(results), reason
