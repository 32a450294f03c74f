"""How good logits are: accuracy with its uncertainty, where the errors lie, whether confidence can be believed.

Plain numpy and scipy, held to scikit-learn and torchmetrics by test: importing torchmetrics takes seconds,
which every command that reports a number would pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from vitrail.errors import UserError
from vitrail.evaluate.calibration import bin_of

Array = np.ndarray[Any, Any]
Interval = tuple[float, float]

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Shares of the photos that ``Evaluation.abstention`` answers."""


@dataclass(frozen=True)
class ClassAccuracy:
    """One class's share of ``Evaluation``."""

    name: str
    correct: int
    total: int
    accuracy: float | None
    """None when there is no image of the class."""
    interval: Interval


@dataclass(frozen=True)
class Abstention:
    """What answering only the surest photos gives."""

    coverage: float
    """Share of the photos answered: those of the threshold's confidence or more, so equals stay together."""
    accuracy: float
    """Among them."""
    threshold: float


@dataclass(frozen=True)
class Evaluation:
    """What n labelled images say about a classifier of K classes."""

    images: int
    """n"""
    top1: float
    top5: float
    """The label is among the min(5, K) highest logits; so it is 1 when K is 5 or fewer."""
    interval: Interval
    """95 % Wilson interval of ``top1``."""
    per_class: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    """K x K counts, one row for each true class, one column for each predicted one."""
    calibration_error: float
    """Expected calibration error of the softmax confidence, 15 equal-width bins (Guo et al., arXiv 1706.04599)."""
    abstention: tuple[Abstention, ...]
    """At about each of ``COVERAGES``, by the softmax confidence; chosen and measured on the same images."""

    @property
    def commonest(self) -> float:
        """The accuracy of always answering the commonest class, which takes no model."""
        return max(entry.total for entry in self.per_class) / self.images

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: tuples become lists."""
        record = asdict(self)
        record["interval"] = list(self.interval)
        record["per_class"] = [{**row, "interval": list(row["interval"])} for row in record["per_class"]]
        record["abstention"] = list(record["abstention"])
        record["confusion"] = [list(row) for row in self.confusion]
        return record


def wilson(correct: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    found = scipy.stats.binomtest(correct, total).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean of values that vary by chance, such as over seeds; one value has no bounds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return -np.inf, np.inf
    reach = scipy.stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(mean - reach), float(mean + reach)


def evaluate_logits(logits: Array, labels: Array, class_names: Sequence[str], temperature: float = 1.0) -> Evaluation:
    """Judge (n, K) logits by their (n,) labels, integers 0 to K - 1; of equal logits the first class's wins.

    Args:
        temperature: the logits are divided by it for the confidence, which leaves the predictions as they are.

    Raises:
        UserError: no images, or logits that are not finite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.shape != (*labels.shape, len(class_names)):
        raise ValueError(f"logits {logits.shape}, labels {labels.shape} and {len(class_names)} names do not fit")
    if not len(labels):
        raise UserError("There is no image to evaluate on: name a folder that holds some.")
    if not np.isfinite(logits).all():
        raise UserError("Some logits are not finite: run the model in float32, or check its weights.")
    classes = len(class_names)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    correct = order[:, 0] == labels
    confusion = np.bincount(labels * classes + order[:, 0], minlength=classes**2).reshape(classes, classes)
    per_class = []
    for name, row, right in zip(class_names, confusion, confusion.diagonal().tolist(), strict=True):
        total = int(row.sum())
        per_class.append(ClassAccuracy(name, right, total, right / total if total else None, wilson(right, total)))
    confidence = scipy.special.softmax(logits / temperature, axis=1).max(axis=1)
    return Evaluation(
        images=len(labels),
        top1=float(correct.mean()),
        top5=float((order == labels[:, None]).any(axis=1).mean()),
        interval=wilson(int(correct.sum()), len(labels)),
        per_class=tuple(per_class),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        calibration_error=calibration_error(confidence, correct),
        abstention=_abstention(confidence, correct),
    )


def _abstention(confidence: Array, correct: Array) -> tuple[Abstention, ...]:
    ranked = np.sort(confidence)[::-1]
    rows = []
    for coverage in COVERAGES:
        threshold = ranked[max(1, round(coverage * len(ranked))) - 1]
        answered = confidence >= threshold
        rows.append(Abstention(float(answered.mean()), float(correct[answered].mean()), float(threshold)))
    return tuple(rows)


def calibration_error(confidence: Array, correct: Array, bins: int = 15) -> float:
    """Mean over images of |accuracy - confidence| of the bin they fall in; bins of equal width over [0, 1]."""
    gap = np.bincount(bin_of(confidence, bins), weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def paired_bootstrap(
    correct_a: Array, correct_b: Array, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Accuracy of a less that of b on the same n images, and its 95 % percentile interval (Efron 1979).

    Args:
        correct_a, correct_b: (n,) whether each image was right; (S, n) for S seeds of both, whose mean each image
            then counts with.
    """
    difference = np.atleast_2d(np.asarray(correct_a, np.int64) - np.asarray(correct_b, np.int64))
    if not difference.size:
        raise UserError("There is no image to compare on: name a folder that holds some.")
    # Only how many images have each sum over seeds matters, and under resampling these counts are multinomial.
    seeds, n = difference.shape
    shares = np.bincount(difference.sum(0) + seeds, minlength=2 * seeds + 1) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, size=resamples)  # (resamples, 2 S + 1)
    low, high = np.percentile(counts @ np.arange(-seeds, seeds + 1) / (n * seeds), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
