"""Temperature, reliability and abstention: known scales, sums and ends."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.datasets import load_digits

from vitrail.evaluate.calibration import (
    TEMPERATURES,
    abstention_curve,
    coverage_at,
    fit_temperature,
    logarithm,
    reliability,
)
from vitrail.evaluate.metrics import COVERAGES, calibration_error, evaluate_logits
from vitrail.evaluate.probe import fit_logistic, fit_probe, out_of_fold


def case(n: int = 2000, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth: labels are drawn from it."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, classes))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, labels.clip(max=classes - 1)


def answers(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1) == labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 8.0])
def test_temperature_recovers_a_known_scale(scale: float) -> None:
    logits, labels = case()
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=0.08)
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale * fit_temperature(logits, labels), rel=0.02)


def test_temperature_makes_confidence_believable_and_predictions_stay() -> None:
    logits, labels = case()
    plain = evaluate_logits(4 * logits, labels, list("abcde"))
    temperature = fit_temperature(4 * logits, labels)
    scaled = evaluate_logits(4 * logits, labels, list("abcde"), temperature)
    assert plain.calibration_error > 0.2
    assert scaled.calibration_error < 0.03
    assert (scaled.top1, scaled.top5, scaled.confusion) == (plain.top1, plain.top5, plain.confusion)


def test_out_of_fold_temperature_helps_photos_not_seen() -> None:
    images, labels = load_digits(return_X_y=True)
    features = images.reshape(len(images), 1, 1, -1).astype(np.float32)
    train = np.arange(len(labels)) % 6 == 0
    fitted = fit_probe(features[train], labels[train], ("mean",))
    weight, bias = fit_logistic(features[train], labels[train], 1e-8)  # overconfident
    bold = replace(fitted, strength=1e-8, weight=weight, bias=bias, out_of_fold=None)
    temperature = fit_temperature(logarithm(out_of_fold(features[train], labels[train], bold)), labels[train])
    logits, names = bold.logits(features[~train]), [str(digit) for digit in range(10)]
    before = evaluate_logits(logits, labels[~train], names)
    after = evaluate_logits(logits, labels[~train], names, temperature)
    assert temperature > 1
    assert after.calibration_error < 0.7 * before.calibration_error


def test_log_probabilities_do_as_well_as_logits() -> None:
    logits, labels = case()
    probabilities = softmax(logits, axis=1)
    assert fit_temperature(logarithm(probabilities), labels) == pytest.approx(fit_temperature(logits, labels))
    assert np.isfinite(logarithm(np.float32([0, 1]))).all()


def test_a_few_photos_claim_neither_certainty_nor_ignorance() -> None:
    right = 5 * np.eye(3)[np.arange(6) % 3]
    assert 0.5 < fit_temperature(right, np.arange(6) % 3) <= 1
    assert 1 < fit_temperature(right[:1], np.array([1])) < TEMPERATURES[1]
    assert fit_temperature(np.zeros((4, 2)), np.array([0, 1, 0, 1])) == pytest.approx(1, abs=1e-3)
    assert fit_temperature(np.empty((0, 2)), np.empty(0, int)) == 1


def test_perfectly_separated_photos_stay_within_bounds() -> None:
    labels = np.arange(500) % 4
    assert TEMPERATURES[0] <= fit_temperature(np.eye(4)[labels], labels) < 0.5


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_bins_hold_every_photo_once(photos: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = (np.array(column) for column in zip(*photos, strict=True))
    found = reliability(confidence, correct, bins)
    assert sum(row.count for row in found) == len(photos)
    assert (found[0].low, found[-1].high) == (0, 1)
    gap = sum(row.count * abs(row.accuracy - row.confidence) for row in found if row.count)
    assert gap / len(photos) == pytest.approx(calibration_error(confidence, correct, bins), abs=1e-9)
    for row in found:
        assert (row.accuracy is None) == (row.confidence is None) == (row.count == 0)
        assert row.confidence is None or row.low - 1e-9 <= row.confidence <= row.high + 1e-9


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=40))
def test_abstention_is_a_threshold(photos: list[tuple[float, bool]]) -> None:
    confidence, correct = (np.array(column) for column in zip(*photos, strict=True))
    coverage, accuracy = abstention_curve(confidence, correct)
    thresholds = sorted(set(confidence.tolist()), reverse=True)
    assert coverage.tolist() == [np.mean(confidence >= threshold) for threshold in thresholds]
    assert np.allclose(accuracy, [correct[confidence >= threshold].mean() for threshold in thresholds])
    assert (coverage[-1], accuracy[-1]) == (1.0, pytest.approx(correct.mean()))


def test_coverage_at_an_accuracy() -> None:
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, True, False, True, False])
    assert [coverage_at(confidence, correct, wanted) for wanted in (1.0, 0.75, 0.6)] == [0.4, 0.8, 1.0]
    assert coverage_at(confidence, ~correct, 0.9) == 0
    assert [len(column) for column in abstention_curve(np.empty(0), np.empty(0))] == [0, 0]


def test_evaluation_lists_abstention() -> None:
    logits, labels = case(n=400)
    confidence, correct = answers(logits, labels)
    found = evaluate_logits(logits, labels, list("abcde"))
    assert found.abstention[0].accuracy == pytest.approx(found.top1)
    assert [row.coverage for row in found.abstention] == pytest.approx(COVERAGES)
    assert found.abstention[-1].accuracy > found.top1 + 0.1
    for row in found.abstention:
        assert row.accuracy == pytest.approx(correct[confidence >= row.threshold].mean())
    record = found.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert set(record["abstention"][0]) == {"coverage", "accuracy", "threshold"}


def test_equal_confidences_are_answered_together() -> None:
    found = evaluate_logits(np.array([[1.0, 0], [1, 0], [1, 0], [0, 3]]), np.array([0, 0, 1, 1]), ["a", "b"])
    assert [(row.coverage, row.accuracy) for row in found.abstention] == [(1.0, 0.75)] * 5 + [(1.0, 0.75)]
