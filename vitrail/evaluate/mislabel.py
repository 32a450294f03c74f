"""Which training labels are likely wrong, from predictions that did not see them.

Confident learning (Northcutt et al., arXiv 1911.00068) compares probabilities with thresholds and
takes them as they are. But a classifier fitted on partly wrong labels is less sure than it should
be. So how sure it should be and how many labels are wrong are fitted together, by maximum likelihood,
and the list holds the photos whose label is then more likely wrong than right: no length is chosen.

A wrong label is taken to be any other class. Labels mistaken for the very class that looks most alike
cannot be told from honest doubt of the classifier: the list is as precise then, but much shorter than
the number of such labels (``benchmarks/mislabels.py``: it holds a sixth of them, of random ones four fifths).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from vitrail.evaluate.calibration import logarithm

Array = np.ndarray[Any, Any]

TEMPERATURES = np.geomspace(1 / 8, 4, 41)
"""Divisors of the log-probabilities tried."""
PRIOR = 50
"""The share of wrong labels is fitted as if this many more photos had been seen to be labelled rightly (a Beta
prior), which matters for small sets: their classifier's own mistakes should not pass for wrong labels."""
ENOUGH = 2**20
"""About this many numbers of the (n, K) decide on the two parameters; more would not change them."""


@dataclass(frozen=True)
class Suspect:
    """A photo whose label is likely wrong."""

    index: int
    """Its row."""
    suggested: int
    """The most probable other class."""
    given_probability: float
    """Out-of-fold probability of the label it bears."""
    suggested_probability: float
    """Out-of-fold probability of ``suggested``."""
    wrong: float
    """Probability that the label is wrong: over 0.5. The mean over the list is the precision to expect of it:
    89 % where 87 % were planted at random on real photos."""


@dataclass(frozen=True)
class LabelNoise:
    """What ``label_noise`` fits."""

    share: float
    """Of the labels that are wrong, 0 to 0.5."""
    temperature: float
    """That the log-probabilities are to be divided by; less than 1 when wrong labels have blunted them."""


def suspects(probabilities: Array, labels: Array) -> list[Suspect]:
    """Photos whose label is more likely wrong than right, most suspicious first.

    Args:
        probabilities: (n, K) each from a fit that did not see the photo, as ``out_of_fold`` gives them.
        labels: (n,) the labels as given, 0 to K - 1.
    """
    logits, labels = _checked(probabilities, labels)
    noise = label_noise(probabilities, labels)
    rows = np.arange(len(labels))
    right = scipy.special.log_softmax(logits / noise.temperature, axis=1)[rows, labels]
    wrong = _posterior(right, noise.share, logits.shape[1])
    others = logits.copy()
    others[rows, labels] = -np.inf
    suggested = others.argmax(axis=1)
    ranked = np.argsort(right, kind="stable")[: np.count_nonzero(wrong > 0.5)]
    return [
        Suspect(
            index=int(row),
            suggested=int(suggested[row]),
            given_probability=float(probabilities[row, labels[row]]),
            suggested_probability=float(probabilities[row, suggested[row]]),
            wrong=float(wrong[row]),
        )
        for row in ranked
    ]


def label_noise(probabilities: Array, labels: Array) -> LabelNoise:
    """The share of wrong labels and the sharpness of the probabilities that make the given labels most likely.

    The model: a photo of probabilities q (those given, at the temperature) bears label k with the
    probability (1 - share) q_k + share (1 - q_k) / (K - 1); a wrong label is any other class.
    """
    logits, labels = _checked(probabilities, labels)
    step = logits.size // ENOUGH + 1
    logits, labels = logits[::step], labels[::step]
    rows = np.arange(len(labels))
    best, share, temperature = np.inf, 0.0, 1.0
    for tried in TEMPERATURES:
        right = np.exp(scipy.special.log_softmax(logits / tried, axis=1)[rows, labels])
        found = scipy.optimize.minimize_scalar(  # convex in the share
            _surprise, bounds=(0, 0.5), args=(right, logits.shape[1]), method="bounded", options={"xatol": 1e-6}
        )
        if found.fun < best:
            best, share, temperature = float(found.fun), float(found.x), float(tried)
    return LabelNoise(share, temperature)


def _checked(probabilities: Array, labels: Array) -> tuple[Array, Array]:
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"probabilities {probabilities.shape} and labels {labels.shape} do not fit together")
    return logarithm(probabilities), labels


def _surprise(share: float, right: Array, classes: int) -> float:
    """Negative log-likelihood of the given labels, and the prior's."""
    seen = (1 - share) * right + share * (1 - right) / (classes - 1)
    return float(-np.log(np.maximum(seen, np.finfo(np.float64).tiny)).sum() - PRIOR * np.log1p(-share))


def _posterior(log_right: Array, share: float, classes: int) -> Array:
    """(n,) the probability that a label of log-probability ``log_right`` is a wrong one."""
    right = np.exp(log_right)
    wrong = share * (1 - right) / (classes - 1)
    return wrong / np.maximum(wrong + (1 - share) * right, np.finfo(np.float64).tiny)
