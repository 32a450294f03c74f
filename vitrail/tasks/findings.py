"""What a run's features and predictions say about its photos: for the report, and for whoever mends the data."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.special

from vitrail.data.sources import Sample
from vitrail.evaluate.calibration import fit_temperature, logarithm
from vitrail.evaluate.duplicates import Pair, near_duplicates
from vitrail.evaluate.mislabel import Suspect, suspects


@dataclass(frozen=True)
class Findings:
    """Rows of the tables that a run folder holds beside its model."""

    train: list[Sample]
    val: list[Sample]
    logits: np.ndarray
    """(n, classes) of the held-out photos."""
    temperature: float
    suspects: list[Suspect]
    """Their ``index`` is a position in ``train``."""
    twins: list[tuple[Sample, Sample]]
    """Photos of the same content that are trained on and held out."""
    pairs: list[Pair]
    """Positions in ``train`` and, after it, ``val``."""


def find(
    unseen: np.ndarray,
    features: np.ndarray,
    logits: np.ndarray,
    train: list[Sample],
    val: list[Sample],
    twins: list[tuple[Sample, Sample]],
) -> Findings:
    """Look for wrong labels and copies, and fit the temperature of a classifier on features.

    The temperature comes from predictions of training photos by fits that did not see them, so the
    held-out result stays honest.

    Args:
        unseen: (n, classes) probabilities of the photos of ``train`` by classifiers that did not see them.
        features: (n + m, L, P, D) of the photos of ``train`` and then ``val``.
        logits: (m, classes) of ``val``.
    """
    labels = np.array([sample.label for sample in train])
    copies = near_duplicates(features[:, -1].reshape(len(features), -1))
    temperature = fit_temperature(logarithm(unseen), labels)
    return Findings(train, val, logits, temperature, suspects(unseen, labels), twins, copies)


def after_training(found: Findings, logits: np.ndarray) -> Findings:
    """The same for a model that was trained since: its temperature comes from the held-out photos, all that it has."""
    labels = np.array([sample.label for sample in found.val])
    return replace(found, logits=logits, temperature=fit_temperature(logits, labels))


def write_findings(folder: Path, found: Findings, classes: Sequence[str]) -> None:
    """Write ``predictions.csv``, ``suspects.csv`` and ``near_duplicates.csv`` into ``folder``."""
    confidence = scipy.special.softmax(found.logits / found.temperature, axis=1).max(axis=1)
    unscaled = scipy.special.softmax(found.logits, axis=1).max(axis=1)
    predicted = found.logits.argmax(axis=1)
    _write(
        folder / "predictions.csv",
        ["path", "label", "predicted", "confidence", "unscaled"],
        [
            [
                sample.path.absolute(),
                classes[sample.label],
                classes[predicted[row]],
                float(confidence[row]),
                float(unscaled[row]),
            ]
            for row, sample in enumerate(found.val)
        ],
    )
    _write(
        folder / "suspects.csv",
        ["path", "label", "suggested", "given", "score"],
        [
            [
                found.train[suspect.index].path.absolute(),
                classes[found.train[suspect.index].label],
                classes[suspect.suggested],
                suspect.given_probability,
                suspect.suggested_probability,
            ]
            for suspect in found.suspects
        ],
    )
    both = [*((sample, "train") for sample in found.train), *((sample, "val") for sample in found.val)]
    rows = []
    for pair in found.pairs:
        (one, part), (other, other_part) = both[pair.first], both[pair.second]
        labels = [classes[one.label], classes[other.label]]
        rows.append([one.path.absolute(), other.path.absolute(), pair.similarity, *labels, f"{part}/{other_part}"])
    _write(folder / "near_duplicates.csv", ["path_a", "path_b", "similarity", "label_a", "label_b", "parts"], rows)


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
