"""What a run's features and predictions say about its photos: for the report, and for whoever mends the data."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.special

from vitrail.data.sources import Sample
from vitrail.evaluate.calibration import fit_temperature, logarithm
from vitrail.evaluate.duplicates import Pair, near_duplicates
from vitrail.evaluate.mislabel import Suspect, suspects
from vitrail.evaluate.probe import Probe, out_of_fold


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
    probe: Probe,
    features: np.ndarray,
    logits: np.ndarray,
    train: list[Sample],
    val: list[Sample],
    twins: list[tuple[Sample, Sample]],
    trained: bool,
    seed: int,
) -> Findings:
    """Look for wrong labels and copies, and fit the temperature.

    A probe's temperature comes from predictions of training photos by fits that did not see them, so
    its held-out result stays honest; a trained model's from the held-out photos, which are all it has.

    Args:
        features: (n, L, P, D) of the photos of ``train`` and then ``val``.
        logits: (m, classes) of ``val``.
        trained: whether the model itself was trained.
    """
    labels = np.array([sample.label for sample in train])
    unseen = out_of_fold(features[: len(train)], labels, probe, seed)
    if trained:
        temperature = fit_temperature(logits, np.array([sample.label for sample in val]))
    else:
        temperature = fit_temperature(logarithm(unseen), labels)
    copies = near_duplicates(features[:, -1].reshape(len(features), -1))
    return Findings(train, val, logits, temperature, suspects(unseen, labels), twins, copies)


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
