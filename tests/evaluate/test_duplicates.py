"""Near-duplicates: blockwise as by brute force, planted copies found, whatever cone the features lie in."""

from __future__ import annotations

import numpy as np
import pytest

from vitrail.evaluate import duplicates as module
from vitrail.evaluate.duplicates import Pair, near_duplicates


def photos(n: int = 60, width: int = 40, offset: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)) + offset


def brute_force(features: np.ndarray, limit: float) -> list[tuple[int, int, float]]:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    pairs = np.transpose(np.triu_indices(len(features), 1))
    least = 1 - limit * (1 - np.mean([cosine[i, j] for i, j in pairs]))
    found = [(int(i), int(j), float(cosine[i, j])) for i, j in pairs if cosine[i, j] >= least]
    return sorted(found, key=lambda pair: -pair[2])


@pytest.mark.parametrize("block", [7, 60, 2048])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_blockwise_is_brute_force(block: int, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    features = photos(offset=offset)
    expected = brute_force(features, 0.8)
    found = near_duplicates(features, 0.8)
    assert len(found) == len(expected) > 5
    assert {(pair.first, pair.second) for pair in found} == {pair[:2] for pair in expected}
    # In order; pairs nearer to each other than float32 can tell may be swapped.
    assert np.allclose([pair.similarity for pair in found], [pair[2] for pair in expected], atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1.0, 30.0])
def test_planted_copies_and_nothing_else(offset: float) -> None:
    # Features of some models share a large offset, so that every cosine is near 1.
    features = photos(200, offset=offset)
    planted = [(3, 150), (7, 90), (8, 9)]
    noise = photos(3, seed=1)
    for (source, copy), shift in zip(planted, noise, strict=True):
        features[copy] = features[source] + 0.05 * shift
    found = near_duplicates(features)
    assert sorted((pair.first, pair.second) for pair in found) == planted


def test_copies_come_as_every_pair_and_the_length_of_a_photo_does_not_count() -> None:
    features = photos()
    features[[10, 20]] = features[5] * [[2], [0.1]]
    found = near_duplicates(features)
    assert [(pair.first, pair.second) for pair in found] == [(5, 10), (5, 20), (10, 20)]
    assert all(1 - 1e-6 < pair.similarity <= 1 for pair in found)


def test_a_set_of_copies_is_cut_to_the_most_similar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    features = photos()
    everything = near_duplicates(features, limit=2.0)
    assert len(everything) > 500
    assert near_duplicates(features, limit=2.0, most=25) == everything[:25]


def test_the_order_of_photos_does_not_matter() -> None:
    features, rows = photos(), np.random.default_rng(1).permutation(60)
    found = near_duplicates(features[rows], 0.8)
    pairs = {tuple(sorted((int(rows[pair.first]), int(rows[pair.second])))) for pair in found}
    assert pairs == {(pair.first, pair.second) for pair in near_duplicates(features, 0.8)}


def test_few_photos_and_empty_features() -> None:
    assert near_duplicates(photos(0)) == near_duplicates(photos(1)) == []
    assert near_duplicates(np.zeros((5, 4))) == []
    assert near_duplicates(np.ones((2, 4))) == [Pair(0, 1, 1.0)]
