"""Whether a confidence can be believed, and what it is worth to leave the doubtful ones to a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

Array = np.ndarray[Any, Any]

TEMPERATURES = (0.05, 20.0)
"""The range searched."""


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: the photos whose confidence lies in [low, high)."""

    low: float
    high: float
    count: int
    confidence: float | None
    """Mean confidence; None when the bin is empty."""
    accuracy: float | None


def logarithm(probabilities: Array) -> Array:
    """Logits that softmax turns into these probabilities; those rounded to 0 count as the least float32 holds."""
    clipped: Array = np.log(np.maximum(np.asarray(probabilities, np.float64), np.finfo(np.float32).tiny))
    return clipped


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature T for which softmax(logits / T) gives the labels the least log-loss.

    Temperature scaling, Guo et al., arXiv 1706.04599, section 4.2. The predictions stay as they are.
    A standard normal prior on log T keeps it sensible for few photos: a handful that are all right
    would otherwise claim certainty. For a hundred photos and more it is not felt.

    It has to be fitted on photos the model was not trained on, and a calibration error measured on
    the very same photos flatters. For a probe take the ``logarithm`` of its out-of-fold probabilities:
    no held-out photo is touched and the held-out result stays honest. After full fine-tuning only
    the held-out photos are left; say so beside the number.

    Args:
        logits: (n, K)
        labels: (n,) integers 0 to K - 1.

    Returns:
        T within ``TEMPERATURES``; 1 when there is no photo.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if not len(labels):
        return 1.0
    rows = np.arange(len(labels))

    def surprise(log_temperature: float) -> float:
        log_likelihood = scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels]
        return float(log_temperature**2 / 2 - log_likelihood.sum())

    low, high = np.log(TEMPERATURES)
    found = scipy.optimize.minimize_scalar(surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))


def reliability(confidence: Array, correct: Array, bins: int = 15) -> tuple[Bin, ...]:
    """The reliability diagram's bars: bins of equal width over [0, 1], as ``calibration_error`` has them.

    Args:
        confidence: (n,) softmax maximum.
        correct: (n,) whether the prediction was right.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    which = bin_of(confidence, bins)
    counts = np.bincount(which, minlength=bins)
    sure = np.bincount(which, weights=confidence, minlength=bins)
    right = np.bincount(which, weights=correct, minlength=bins)
    return tuple(
        Bin(
            index / bins,
            (index + 1) / bins,
            int(counts[index]),
            float(sure[index] / counts[index]) if counts[index] else None,
            float(right[index] / counts[index]) if counts[index] else None,
        )
        for index in range(bins)
    )


def bin_of(confidence: Array, bins: int) -> Array:
    """(n,) which of the bins of equal width each confidence falls in; 1 falls in the last."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def abstention_curve(confidence: Array, correct: Array) -> tuple[Array, Array]:
    """Accuracy on the photos answered, when the least confident are left to a person.

    The risk-coverage curve of selective classification (Geifman & El-Yaniv, arXiv 1705.08500),
    accuracy being 1 - risk. Photos of the same confidence are answered or left together.

    Returns:
        coverage (m,), ascending, the last 1; accuracy (m,) on the share answered.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True)) if len(ranked) else np.empty(0, np.int64)
    answered = last + 1
    return answered / max(1, len(ranked)), np.cumsum(correct[order])[last] / answered


def coverage_at(confidence: Array, correct: Array, accuracy: float) -> float:
    """The largest share that can be answered at this accuracy or better; 0 when none can.

    It is chosen and measured on the same photos, so it flatters: on new ones expect a little less.
    """
    coverage, reached = abstention_curve(confidence, correct)
    enough = coverage[reached >= accuracy]
    return float(enough[-1]) if len(enough) else 0.0
