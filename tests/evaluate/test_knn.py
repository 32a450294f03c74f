"""Nearest neighbours, against loops, against scikit-learn, and by what must not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from vitrail.errors import UserError
from vitrail.evaluate import knn
from vitrail.evaluate.knn import NEIGHBOURS, fit_neighbours
from vitrail.evaluate.metrics import evaluate_logits

Array = np.ndarray[Any, Any]


def _points(n: int, classes: int = 4, spread: float = 1.0, seed: int = 0, width: int = 8) -> tuple[Array, Array]:
    """Features around one centre for each class, of very different lengths."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = random.integers(classes, size=n)
    features = centres[labels] + spread * random.normal(size=(n, width))
    return features * random.uniform(0.1, 10, size=(n, 1)), labels


def _by_hand(features: Array, labels: Array, query: Array, classes: int, k: int) -> Array:
    """Shares of the votes, one neighbour after another."""
    cosines = [float(x @ query / np.linalg.norm(x) / np.linalg.norm(query)) for x in features]
    votes = np.zeros(classes)
    for i in sorted(range(len(labels)), key=lambda i: -cosines[i])[:k]:
        votes[labels[i]] += np.exp(cosines[i] / 0.07)
    return votes / votes.sum()


@settings(derandomize=True)  # else one in a thousand runs meets two neighbours equally near
@given(n=st.integers(1, 30), classes=st.integers(1, 5), k=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_votes_are_those_counted_by_hand(n: int, classes: int, k: int, seed: int) -> None:
    features, labels = _points(n, classes, seed=seed)
    queries, _ = _points(3, classes, seed=seed + 1)
    neighbours = fit_neighbours(features, labels, classes, k)
    assert neighbours.k == min(k, n)
    logits = neighbours.logits(queries)
    assert logits.shape == (3, classes)
    expected = np.array([_by_hand(features, labels, query, classes, k) for query in queries])
    np.testing.assert_allclose(np.exp(logits), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("k", [1, 5, 20, 60])
def test_on_a_par_with_scikit_learn(k: int) -> None:
    features, labels = _points(60)
    queries, truth = _points(40, seed=1)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs.fit(features, labels)
    logits = fit_neighbours(features, labels, 4, k).logits(queries)
    np.testing.assert_allclose(np.exp(logits), theirs.predict_proba(queries), rtol=0, atol=1e-5)
    assert (logits.argmax(axis=1) == theirs.predict(queries)).all()
    assert (logits.argmax(axis=1) == truth).mean() > 0.5


def test_k_is_chosen_by_leaving_one_out() -> None:
    features, labels = _points(70, spread=1.2)
    neighbours = fit_neighbours(features, labels, 4)
    assert [choice.k for choice in neighbours.left_out] == [1, 5, 10, 20, 50, 69]
    for choice in neighbours.left_out:
        right = 0
        for i in range(70):
            others = np.arange(70) != i
            votes = _by_hand(features[others], labels[others], features[i], 4, choice.k)
            right += int(votes.argmax() == labels[i])
        assert choice.accuracy == right / 70
    best = max(choice.accuracy for choice in neighbours.left_out)
    assert neighbours.k == max(choice.k for choice in neighbours.left_out if choice.accuracy == best)
    assert len({choice.accuracy for choice in neighbours.left_out}) > 2


def test_few_neighbours_are_chosen_where_many_mislead() -> None:
    """Three tight classes of 6 in one of 60 that lies around them."""
    random = np.random.default_rng(0)
    small = [centre + 0.05 * random.normal(size=(6, 16)) for centre in random.normal(size=(3, 16))]
    features = np.concatenate([*small, random.normal(size=(60, 16))])
    labels = np.repeat([0, 1, 2, 3], [6, 6, 6, 60])
    neighbours = fit_neighbours(features, labels, 4)
    assert neighbours.k < 69
    assert max(neighbours.left_out, key=lambda choice: choice.k).accuracy < max(
        choice.accuracy for choice in neighbours.left_out
    )


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = _points(50, spread=1.5)
    queries, _ = _points(23, seed=1)
    whole = fit_neighbours(features, labels, 4)
    expected = whole.logits(queries)
    monkeypatch.setattr(knn, "BLOCK", 50 * 7)
    seen: list[tuple[int, int]] = []
    parts = fit_neighbours(features, labels, 4, progress=lambda *step: seen.append(step))
    assert parts.left_out == whole.left_out
    assert seen == [(done, 50) for done in (7, 14, 21, 28, 35, 42, 49, 50)]
    seen.clear()
    np.testing.assert_allclose(np.exp(parts.logits(queries, lambda *step: seen.append(step))), np.exp(expected), 1e-4)
    assert seen == [(7, 23), (14, 23), (21, 23), (23, 23)]


def test_no_more_is_held_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "BLOCK", 100)
    features = _points(40)[0]
    shapes = [cosines.shape for _, cosines in knn._blocks(features, features)]
    assert shapes == [(2, 40)] * 20
    monkeypatch.setattr(knn, "BLOCK", 10)  # less than one row
    assert [cosines.shape for _, cosines in knn._blocks(features[:3], features)] == [(1, 40)] * 3


@settings(derandomize=True)  # else one in a thousand runs meets two neighbours equally near
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-25, 0.5, 3.0, 1e25]))
def test_lengths_and_order_do_not_matter(seed: int, scale: float) -> None:
    features, labels = _points(30, seed=seed)
    queries, _ = _points(5, seed=seed + 1)
    order = np.random.default_rng(seed).permutation(30)
    first = fit_neighbours(features, labels, 4, 7).logits(queries)
    second = fit_neighbours(features[order] * scale, labels[order], 4, 7).logits(queries / scale)
    np.testing.assert_allclose(np.exp(first), np.exp(second), rtol=0, atol=1e-4)


def test_an_image_that_was_seen_is_what_it_was() -> None:
    features, labels = _points(30)
    logits = fit_neighbours(features, labels, 4, 1).logits(features)
    assert (logits.argmax(axis=1) == labels).all()


def test_metrics_take_the_logits() -> None:
    features, labels = _points(60)
    queries, truth = _points(40, seed=1)
    logits = fit_neighbours(features, labels, 5, 3).logits(queries)  # no image is of the fifth class
    np.testing.assert_allclose(scipy.special.softmax(logits, axis=1).sum(axis=1), 1, rtol=1e-6)
    assert (logits[:, 4] == logits.min()).all()
    evaluation = evaluate_logits(logits, truth, tuple("abcde"))
    assert evaluation.top1 == (logits.argmax(axis=1) == truth).mean()


def test_as_many_values_of_k_as_there_are_images_for() -> None:
    features, labels = _points(300, classes=2)
    assert [choice.k for choice in fit_neighbours(features, labels, 2).left_out] == list(NEIGHBOURS)
    assert [choice.k for choice in fit_neighbours(features[:4], labels[:4], 2).left_out] == [1, 3]
    one = fit_neighbours(features[:1], labels[:1], 2)
    assert (one.k, one.left_out) == (1, ())
    assert (one.logits(features[:5]).argmax(axis=1) == labels[0]).all()


def test_a_feature_of_zeros_is_like_none() -> None:
    features = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    neighbours = fit_neighbours(features, np.array([0, 1, 2]), 3, 3)
    np.testing.assert_allclose(np.exp(neighbours.logits(np.zeros((1, 2)))), np.full((1, 3), 1 / 3), rtol=1e-6)


def test_no_queries() -> None:
    features, labels = _points(10)
    assert fit_neighbours(features, labels, 4, 3).logits(features[:0]).shape == (0, 4)


def test_mistakes_get_a_sentence() -> None:
    features, labels = _points(10)
    with pytest.raises(UserError, match="k must be at least 1, not 0"):
        fit_neighbours(features, labels, 4, 0)
    with pytest.raises(UserError, match="no image to learn from"):
        fit_neighbours(features[:0], labels[:0], 4)
    spoilt = features.copy()
    spoilt[3, 2] = np.nan
    with pytest.raises(UserError, match="1 of 10 images have features that are not finite, the first is number 3"):
        fit_neighbours(spoilt, labels, 4)
    with pytest.raises(UserError, match="not finite"):
        fit_neighbours(features, labels, 4, 3).logits(spoilt)
    with pytest.raises(ValueError, match="do not fit together"):
        fit_neighbours(features, labels[:5], 4)
    with pytest.raises(ValueError, match="not those of 2 classes"):
        fit_neighbours(features, labels, 2)
    with pytest.raises(ValueError, match="do not fit those remembered"):
        fit_neighbours(features, labels, 4, 3).logits(features[:, :5])
