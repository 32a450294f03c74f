"""Least squares equal scikit-learn's, and what leaving each picture out in turn gives."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from vitrail.errors import UserError
from vitrail.evaluate import fewshot
from vitrail.evaluate.fewshot import fit_least_squares


def planted(n: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(classes, width))[labels] + rng.normal(size=(n, width)) + 5, labels


@pytest.mark.parametrize(("n", "width"), [(12, 40), (60, 7), (30, 30)])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 50.0])
def test_weights_are_those_of_ridge(n: int, width: int, strength: float) -> None:
    features, labels = planted(n, width, 3)
    targets = 2.0 * (np.arange(3) == labels[:, None]) - 1
    reference = Ridge(alpha=strength, solver="svd").fit(features, targets)
    ours = fit_least_squares(features, labels, 3, strength)
    assert np.allclose(ours.weight, reference.coef_, atol=1e-8)
    assert np.allclose(ours.bias, reference.intercept_, atol=1e-7)
    assert np.allclose(ours.logits(features), reference.predict(features), atol=1e-8)


@pytest.mark.parametrize(("n", "width"), [(9, 40), (40, 5)])
def test_the_strength_is_the_one_that_errs_least_on_pictures_left_out(n: int, width: int) -> None:
    features, labels = planted(n, width, 3)
    targets = 2.0 * (np.arange(3) == labels[:, None]) - 1
    unit = ((features - features.mean(0)) ** 2).sum() / n
    errors = []
    for share in fewshot.STRENGTHS:
        missed = []
        for i in range(n):
            rest = np.arange(n) != i
            fitted = Ridge(alpha=share * unit, solver="svd").fit(features[rest], targets[rest])
            missed.append(((fitted.predict(features[i : i + 1]) - targets[i]) ** 2).mean())
        errors.append(np.mean(missed))
    best = fewshot.STRENGTHS[int(np.argmin(errors))] * unit
    assert fit_least_squares(features, labels, 3).strength == pytest.approx(best)


def test_one_picture_a_class_is_enough() -> None:
    features, labels = planted(200, 64, 4)
    fitted = fit_least_squares(features[:4], labels[:4], 4)
    assert (fitted.logits(features).argmax(1) == labels).mean() > 0.8


def test_features_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="All features are the same"):
        fit_least_squares(np.ones((4, 3)), np.arange(4) % 2, 2)
    with pytest.raises(UserError, match="not finite"):
        fit_least_squares(np.full((4, 3), np.nan), np.arange(4) % 2, 2)
