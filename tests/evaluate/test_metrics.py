"""Accuracy, intervals and calibration, against scikit-learn, torchmetrics' and published numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from vitrail.errors import UserError
from vitrail.evaluate.metrics import calibration_error, evaluate_logits, paired_bootstrap, wilson

NAMES = [f"class {index}" for index in range(7)]


def case(n: int = 300, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return 2 * rng.standard_normal((n, classes)) + 2 * np.eye(classes)[labels], labels


def test_wilson_is_the_published_interval() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_holds_the_share_and_mirrors(right: int, wrong: int, level: float) -> None:
    total = right + wrong
    low, high = wilson(right, total, level)
    assert 0 <= low < high <= 1
    assert total == 0 or low - 1e-12 <= right / total <= high + 1e-12
    assert wilson(wrong, total, level) == pytest.approx((1 - high, 1 - low))


def test_evaluation_agrees_with_scikit_learn() -> None:
    logits, labels = case()
    found = evaluate_logits(logits, labels, NAMES)
    assert np.array_equal(found.confusion, confusion_matrix(labels, logits.argmax(1)))
    assert found.top1 == pytest.approx(top_k_accuracy_score(labels, logits, k=1))
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert found.interval == wilson(sum(row.correct for row in found.per_class), 300)
    for index, row in enumerate(found.per_class):
        assert (row.name, row.total) == (NAMES[index], int((labels == index).sum()))
        assert row.accuracy == pytest.approx((logits.argmax(1)[labels == index] == index).mean())
        assert row.interval == wilson(row.correct, row.total)


@pytest.mark.parametrize(("sharpness", "expected"), [(0.1, 0.36258599162), (1.0, 0.14705851674), (30.0, 0.42693117261)])
def test_calibration_error_is_torchmetrics(sharpness: float, expected: float) -> None:
    # Recorded from torchmetrics 1.9.0's multiclass_calibration_error(n_bins=15), whose import takes seconds.
    rows = np.arange(300)
    labels = rows**2 % 7
    logits = 2 * np.sin(np.outer(rows + 1, np.arange(1, 8) ** 2)) + 2 * np.eye(7)[labels]
    found = evaluate_logits(sharpness * logits, labels, NAMES).calibration_error
    assert found == pytest.approx(expected, abs=1e-6)


def test_calibration_error_of_known_cases() -> None:
    assert calibration_error(np.ones(4), np.array([True, True, False, False])) == pytest.approx(0.5)
    assert calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)


def test_fewer_than_five_classes_and_a_class_without_images() -> None:
    found = evaluate_logits(np.array([[2.0, 1, 0], [0, 1, 2]]), np.array([0, 0]), ["a", "b", "c"])
    assert (found.top1, found.top5) == (0.5, 1.0)
    assert found.confusion == ((1, 0, 1), (0, 0, 0), (0, 0, 0))
    assert found.per_class[1].accuracy is None
    assert found.per_class[1].interval == (0.0, 1.0)


def test_to_dict_survives_json() -> None:
    record = evaluate_logits(*case(20), NAMES).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize("logits", [np.empty((0, 2)), np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]])])
def test_nothing_to_judge_is_a_sentence(logits: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"no image|not finite"):
        evaluate_logits(logits, np.zeros(len(logits), int), ["a", "b"])


def test_paired_bootstrap_agrees_with_resampling_images() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.9, rng.random(400) < 0.85
    difference, low, high = paired_bootstrap(a, b)
    picks = rng.integers(400, size=(4000, 400))
    expected = np.percentile(a[picks].mean(1) - b[picks].mean(1), [2.5, 97.5])
    assert difference == pytest.approx(a.mean() - b.mean())
    assert (low, high) == pytest.approx(tuple(expected), abs=0.006)
    assert paired_bootstrap(a, b) == (difference, low, high)
    assert paired_bootstrap(b, a)[0] == -difference


def test_paired_bootstrap_over_seeds_agrees_with_resampling_images() -> None:
    """Each image counts with its mean over seeds: images are drawn again, seeds are not."""
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 400)) < 0.9, rng.random((3, 400)) < 0.85
    difference, low, high = paired_bootstrap(a, b)
    picks = rng.integers(400, size=(4000, 400))
    expected = np.percentile(a.mean(0)[picks].mean(1) - b.mean(0)[picks].mean(1), [2.5, 97.5])
    assert difference == pytest.approx(a.mean() - b.mean())
    assert (low, high) == pytest.approx(tuple(expected), abs=0.004)
    assert paired_bootstrap(a[:1], b[:1]) == paired_bootstrap(a[0], b[0])


def test_paired_bootstrap_sees_the_pairing() -> None:
    right = np.arange(100) < 60
    assert paired_bootstrap(right, right) == (0.0, 0.0, 0.0)
