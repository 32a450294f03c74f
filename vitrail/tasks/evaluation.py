"""A model held against labelled pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.batches import batches
from vitrail.data.sources import open_labelled
from vitrail.errors import UserError
from vitrail.evaluate.metrics import Evaluation, evaluate_logits
from vitrail.report.terminal import Show
from vitrail.tasks.classifier import Classifier, load


@dataclass(frozen=True)
class Evaluated:
    """How a model did."""

    evaluation: Evaluation
    images_per_second: float
    """Pictures read, run and compared a second."""
    unreadable: list[tuple[Path, str]]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            **self.evaluation.to_dict(),
            "images_per_second": self.images_per_second,
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
        }


def evaluate(
    model: str | Path | Classifier,
    data: str | Path,
    *,
    batch_size: int = 32,
    device: str | None = None,
    quiet: bool = False,
) -> Evaluated:
    """Classify labelled pictures and compare.

    Args:
        model: a ``Classifier``, or anything ``load`` takes.
        data: a folder of class folders, a folder with val/ in it, a CSV, or a built-in set; its class
            names must be the model's.

    Raises:
        UserError: the model has no trained classifier, or the data do not fit it or cannot be read.
    """
    show = Show(quiet)
    classifier = model if isinstance(model, Classifier) else load(model, device=device, quiet=quiet)
    classes = classifier.classes()
    samples = open_labelled(data, classes)
    logits: list[np.ndarray] = []
    labels: list[int] = []
    unreadable: list[tuple[Path, str]] = []
    start = time.perf_counter()
    with show.progress("Evaluating") as advance:
        for batch in batches((sample.path for sample in samples), classifier.card.preprocessing, batch_size):
            if batch.index:
                logits.append(classifier.runner.logits(batch.images)[1].numpy())
            labels += [samples[position].label for position in batch.index]
            unreadable += [(samples[position].path, reason) for position, reason in batch.failures]
            advance(batch.start + len(batch.paths), len(samples))
    seconds = time.perf_counter() - start
    if not labels:
        raise UserError(f"None of the {len(samples)} pictures in {data} can be read, the first because: {unreadable[0][1]}.")
    evaluation = evaluate_logits(np.concatenate(logits), np.array(labels), classes)
    return Evaluated(evaluation, len(samples) / seconds, unreadable)
