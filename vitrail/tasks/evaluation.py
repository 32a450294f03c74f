"""A model held against labelled pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.config import ModelCard
from vitrail.data.batches import batches
from vitrail.data.sources import Sample, open_labelled, trained_photos
from vitrail.errors import UserError
from vitrail.evaluate.metrics import Evaluation, evaluate_logits
from vitrail.evaluate.real import Real, read_real, real_accuracy
from vitrail.report.terminal import Show
from vitrail.runtime.predictor import Predictor


@dataclass(frozen=True)
class Evaluated:
    """How a model did."""

    evaluation: Evaluation
    images_per_second: float
    """Pictures read, run and compared a second."""
    unreadable: list[tuple[Path, str]]
    trained_on: int
    """How many of the pictures the model was trained on, as far as its run folder says."""
    real: Real | None = None
    """By ReaL labels, if they were given."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            **self.evaluation.to_dict(),
            "images_per_second": self.images_per_second,
            "trained_on": self.trained_on,
            **({} if self.real is None else {"real": asdict(self.real)}),
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
        }


def trained_on(samples: Sequence[Sample], run: Path, show: Show) -> int:
    """How many of the pictures the model of a run folder was trained on, which is warned about."""
    trained = trained_photos(run)
    seen = sum(sample.path.absolute() in trained for sample in samples)
    if seen:
        show.warn(
            f"The model was trained on {seen} of these {len(samples)} pictures, so the result flatters: "
            f"the held-out ones are those of {run / 'split.csv'}."
        )
    return seen


def evaluate(
    predictor: Predictor,
    card: ModelCard,
    classes: Sequence[str],
    data: str | Path,
    run: Path,
    batch_size: int,
    show: Show,
    real: str | Path | None = None,
) -> Evaluated:
    """Classify labelled pictures and compare; see ``Classifier.evaluate``.

    Args:
        run: the model's run folder, if it comes from one: what it was trained on is warned about.
        real: a file of ReaL labels.
    """
    samples = open_labelled(data, classes)
    right = None
    if real is not None:
        right = read_real(real, [sample.path for sample in samples], [sample.label for sample in samples], len(classes))
    seen = trained_on(samples, run, show)
    logits: list[np.ndarray] = []
    labels: list[int] = []
    read: list[int] = []
    unreadable: list[tuple[Path, str]] = []
    start = time.perf_counter()
    with show.progress("Evaluating") as advance:
        paths = (sample.path for sample in samples)
        for batch in batches(paths, card.preprocessing, batch_size, quick=predictor.quick):
            if batch.index:
                logits.append(predictor.logits(batch.images)[1].numpy())
            read += batch.index
            labels += [samples[position].label for position in batch.index]
            unreadable += [(samples[position].path, reason) for position, reason in batch.failures]
            advance(batch.start + len(batch.paths), len(samples))
    seconds = time.perf_counter() - start
    if not labels:
        raise UserError(
            f"None of the {len(samples)} pictures in {data} can be read, the first because: {unreadable[0][1]}."
        )
    evaluation = evaluate_logits(np.concatenate(logits), np.array(labels), classes, card.temperature)
    judged = None
    if right is not None:
        answers = np.concatenate(logits).argmax(axis=1).tolist()
        judged = real_accuracy(answers, [right[position] for position in read])
    return Evaluated(evaluation, len(samples) / seconds, unreadable, seen, judged)
