"""Likely wrong labels: planted ones are found, clean ones left alone, and confident learning is not better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from vitrail.evaluate.mislabel import label_noise, suspects


def case(
    n: int = 2000, classes: int = 6, share: float = 0.03, blunt: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, given labels, which are wrong: truth drawn from calibrated ones, then both spoiled."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((n, classes)) + 6 * np.eye(classes)[rng.integers(classes, size=n)]
    truth = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=classes - 1)
    given_labels = truth.copy()
    rows = rng.choice(n, round(share * n), replace=False)
    given_labels[rows] = (truth[rows] + rng.integers(1, classes, len(rows))) % classes
    return softmax(logits / blunt, axis=1), given_labels, given_labels != truth


@pytest.mark.parametrize("blunt", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("share", [0.03, 0.15])
def test_share_and_sharpness_are_recovered_together(share: float, blunt: float) -> None:
    probabilities, labels, _ = case(n=10_000, share=share, blunt=blunt)
    found = label_noise(probabilities, labels)
    assert found.share == pytest.approx(share, rel=0.2)
    assert found.temperature == pytest.approx(1 / blunt, rel=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_planted_labels_are_found_at_the_precision_promised(seed: int) -> None:
    probabilities, labels, wrong = case(n=8000, blunt=1.5, seed=seed)
    found = suspects(probabilities, labels)
    hits = wrong[[entry.index for entry in found]]
    assert hits.mean() == pytest.approx(np.mean([entry.wrong for entry in found]), abs=0.08)
    assert hits.mean() > 0.75
    assert hits.sum() > 0.5 * wrong.sum()
    assert all(entry.wrong > 0.5 for entry in found)
    assert [entry.wrong for entry in found] == sorted((entry.wrong for entry in found), reverse=True)


def test_a_suspect_says_what_the_label_should_be() -> None:
    probabilities, labels, _ = case()
    for entry in suspects(probabilities, labels):
        row = probabilities[entry.index]
        assert entry.suggested == row.argmax() != labels[entry.index]
        assert (entry.given_probability, entry.suggested_probability) == (row[labels[entry.index]], row.max())


@pytest.mark.parametrize("n", [2, 30, 3000])
def test_clean_labels_and_sharp_probabilities_give_nothing(n: int) -> None:
    labels = np.arange(n) % 2
    sharp = np.where(np.eye(2, dtype=bool)[labels], 0.99, 0.01)
    assert suspects(sharp, labels) == []
    probabilities, labels, _ = case(n=n, share=0)
    assert len(suspects(probabilities, labels)) <= n / 500


def test_one_blatant_label_among_a_few_hundred() -> None:
    probabilities, labels, _ = case(n=300, share=0)
    before = {entry.index for entry in suspects(probabilities, labels)}
    surest = int(probabilities.max(axis=1).argmax())
    labels[surest] = probabilities[surest].argmin()
    found = suspects(probabilities, labels)
    assert found[0].index == surest
    assert found[0].wrong > 0.9
    assert len(found) <= len(before) + 2


def test_certainty_is_no_trap() -> None:
    labels = np.zeros(200, int)
    probabilities = np.tile(np.float32([1, 0, 0]), (200, 1))
    probabilities[5] = [0, 0, 1]
    (found,) = suspects(probabilities, labels)
    assert (found.index, found.suggested, found.given_probability) == (5, 2, 0.0)


def test_the_order_of_photos_and_the_numbers_of_classes_do_not_matter() -> None:
    probabilities, labels, _ = case()
    expected = [(entry.index, entry.suggested) for entry in suspects(probabilities, labels)]
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(len(labels)), rng.permutation(6)
    renamed = np.argsort(columns)[labels[rows]]
    found = suspects(probabilities[rows][:, columns], renamed)
    assert [(rows[entry.index], columns[entry.suggested]) for entry in found] == expected


def test_a_part_of_many_photos_decides_on_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, labels, _ = case(n=20_000)
    everything = label_noise(probabilities, labels)
    monkeypatch.setattr("vitrail.evaluate.mislabel.ENOUGH", 30_000)
    part = label_noise(probabilities, labels)
    assert part != everything
    assert part.share == pytest.approx(everything.share, rel=0.3)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 999), st.floats(0, 20))
def test_anything_is_listed_once_and_with_reason(n: int, classes: int, seed: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    probabilities = softmax(sharpness * rng.standard_normal((n, classes)), axis=1).astype(np.float32)
    found = suspects(probabilities, rng.integers(classes, size=n))
    assert len({entry.index for entry in found}) == len(found)
    assert all(0.5 < entry.wrong <= 1 and entry.suggested_probability > entry.given_probability for entry in found)


def test_shapes_have_to_fit() -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        suspects(np.ones((3, 2)) / 2, np.zeros(4, int))
