"""The linear probe: the same optimum as scikit-learn's, choices that planted features force, and bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from vitrail.config import Part
from vitrail.errors import UserError
from vitrail.evaluate import probe as module
from vitrail.evaluate.probe import Probe, fit_logistic, fit_probe, out_of_fold

BOTH: tuple[Part, ...] = ("class", "mean")


def planted(
    n: int = 120,
    classes: int = 4,
    layers: int = 3,
    parts: int = 2,
    width: int = 8,
    where: int = -1,
    signal: float = 2.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Noise everywhere, class centres in the first part of block ``where``; columns of unlike scale and offset."""
    rng = np.random.default_rng(n + width)
    labels = np.arange(n) % classes
    features = rng.standard_normal((n, layers, parts, width))
    features[:, where, 0] += signal * rng.standard_normal((classes, width))[labels]
    scale = 10.0 ** rng.uniform(-2, 2, features.shape[1:])
    return (features * scale + 3 * scale).astype(np.float32), labels


def same(one: Probe, two: Probe) -> bool:
    return (
        np.array_equal(one.weight, two.weight)
        and np.array_equal(one.bias, two.bias)
        and one.cross_validation == two.cross_validation
    )


@pytest.mark.parametrize(("n", "width"), [(40, 100), (200, 12)], ids=["wide", "tall"])
@pytest.mark.parametrize("strength", [1e-1, 1e-3, 1e-5])
def test_the_optimum_is_scikit_learns(n: int, width: int, strength: float) -> None:
    features, labels = planted(n=n, layers=1, parts=1, width=width, signal=0.7)
    raw = features.reshape(n, -1).astype(np.float64)
    scaled = (raw - raw.mean(0)) / raw.std(0) / np.sqrt(width)
    reference = LogisticRegression(C=1 / (strength * n), tol=1e-10, max_iter=10_000).fit(scaled, labels)
    weight, bias = fit_logistic(features, labels, strength)
    expected = reference.decision_function(scaled)
    # The weights act on raw features, so that the standardisation must have been folded in.
    assert np.abs(raw @ weight.T + bias - expected).max() <= 2e-4 * np.abs(expected).max()


def test_single_precision_for_large_problems_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = planted(n=200, width=12, signal=0.7)
    exact = fit_logistic(features, labels, 1e-3)
    monkeypatch.setattr(module, "DOUBLE", 0)
    for found, expected in zip(fit_logistic(features, labels, 1e-3), exact, strict=True):
        assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()


def test_logits_take_the_last_blocks_in_order() -> None:
    features, labels = planted(where=1)
    fitted = fit_probe(features, labels, BOTH)
    rows = np.concatenate([features[:, layer, part] for layer in range(3) for part in range(2)], axis=1)
    width = fitted.layers * len(fitted.parts) * 8
    assert fitted.weight.shape == (4, width)
    classes_only = features[:, -fitted.layers :, 0].reshape(len(features), -1)
    used = rows[:, -width:] if fitted.parts == BOTH else classes_only
    assert np.allclose(fitted.logits(features), used @ fitted.weight.T + fitted.bias, atol=1e-4)
    more = np.concatenate([np.full_like(features[:, :2], np.nan), features], axis=1)
    assert np.array_equal(fitted.logits(more), fitted.logits(features))


@pytest.mark.parametrize(("where", "layers"), [(-1, 1), (-2, 2), (-3, 3)])
def test_cross_validation_reaches_the_informative_block(where: int, layers: int) -> None:
    fitted = fit_probe(*planted(where=where), BOTH)
    assert (fitted.parts, fitted.layers) == (("class",), layers)
    assert [row.layers for row in fitted.cross_validation] == [1, 2, 3, 1, 2, 3]
    assert [row.parts for row in fitted.cross_validation] == [("class",)] * 3 + [BOTH] * 3


def test_the_mean_is_taken_when_it_informs() -> None:
    features, labels = planted(where=-1)
    fitted = fit_probe(features[:, :, ::-1], labels, BOTH)
    assert (fitted.parts, fitted.layers) == (BOTH, 1)


def test_out_of_fold_probabilities_are_those_the_choice_was_made_by() -> None:
    features, labels = planted(signal=0.7)
    fitted = fit_probe(features, labels, BOTH)
    best = min(fitted.cross_validation, key=lambda row: row.log_loss)
    assert fitted.out_of_fold is not None
    assert np.allclose(fitted.out_of_fold.sum(1), 1, atol=1e-5)
    assert (fitted.out_of_fold.argmax(1) == labels).mean() == best.accuracy
    assert (best.parts, best.layers, best.strength) == (fitted.parts, fitted.layers, fitted.strength)
    # Not the fit's own predictions: those have seen the labels.
    assert -log_softmax(fitted.logits(features), axis=1)[np.arange(120), labels].mean() < best.log_loss


def test_random_labels_give_chance() -> None:
    rng = np.random.default_rng(0)
    features, labels = planted(n=400, signal=0.0)
    fitted = fit_probe(features, rng.permutation(labels), BOTH)
    best = min(fitted.cross_validation, key=lambda row: row.log_loss)
    assert abs(best.accuracy - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
    assert fitted.strength >= 1e-2
    assert softmax(fitted.logits(features), axis=1).max() < 0.6


def test_deterministic_for_a_seed() -> None:
    features, labels = planted(signal=0.7)
    assert same(fit_probe(features, labels, BOTH, seed=1), fit_probe(features, labels, BOTH, seed=1))
    assert not same(fit_probe(features, labels, BOTH, seed=1), fit_probe(features, labels, BOTH, seed=2))


def test_renaming_the_classes_renames_the_logits() -> None:
    features, labels = planted(signal=0.7)
    renamed = np.array([2, 0, 3, 1])
    one, two = fit_probe(features, labels, BOTH), fit_probe(features, renamed[labels], BOTH)
    assert [(row.strength, row.layers) for row in one.cross_validation] == [
        (row.strength, row.layers) for row in two.cross_validation
    ]
    # The optimum is one; the path to it, and so its last digits, depends on the order of summation.
    assert np.abs(two.logits(features)[:, renamed] - one.logits(features)).max() < 1e-2


def test_float16_is_computed_in_more() -> None:
    features, labels = planted()
    half = features.astype(np.float16)
    assert same(fit_probe(half, labels, BOTH), fit_probe(half.astype(np.float32), labels, BOTH))


def test_columns_that_do_not_vary_get_no_weight() -> None:
    features, labels = planted()
    features[:, :, :, 3] = 1e4 / 3
    fitted = fit_probe(features, labels, BOTH)
    columns = fitted.weight.reshape(4, -1, 8)
    assert not columns[..., 3].any()
    assert np.abs(columns).max() > 0
    assert (fitted.logits(features).argmax(1) == labels).mean() > 0.9


def test_features_that_say_nothing_give_the_shares_of_the_classes() -> None:
    labels = np.arange(40) % 4 % 3  # class 0 twice as common
    fitted = fit_probe(np.ones((40, 2, 2, 5)), labels, BOTH)
    assert not fitted.weight.any()
    assert np.allclose(softmax(fitted.bias), [0.5, 0.25, 0.25], atol=1e-4)


def test_two_images_a_class() -> None:
    features, labels = planted(n=10, classes=5, width=64, signal=4.0)
    fitted = fit_probe(features, labels, BOTH)
    assert fitted.out_of_fold is not None
    assert fitted.out_of_fold.shape == (10, 5)
    assert (fitted.logits(features).argmax(1) == labels).all()


@settings(max_examples=25)
@given(counts=st.lists(st.integers(2, 12), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_every_fit_sees_every_class(counts: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    folds = module._deal(labels, module.FOLDS, seed)
    for fold in np.unique(folds):
        assert set(labels[folds != fold]) == set(range(len(counts)))
    for label in range(len(counts)):
        dealt = np.bincount(folds[labels == label], minlength=module.FOLDS)
        assert dealt.max() - dealt.min() <= 1


def test_large_data_is_cross_validated_on_an_even_part(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = planted(n=300)
    labels[:100], labels[-2:] = 0, 4  # a common class, and one of two
    monkeypatch.setattr(module, "LIMIT", 60)
    rows = module._subset(labels, 0)
    assert 55 <= len(rows) <= 60 + 5
    assert np.bincount(labels[rows]).min() == 2
    assert abs((labels[rows] == 0).mean() - (labels == 0).mean()) < 0.05
    fitted = fit_probe(features, labels, BOTH)
    assert fitted.out_of_fold is None
    assert fitted.bias.shape == (5,)


def test_progress_ends_where_it_said() -> None:
    steps: list[tuple[int, int]] = []
    fit_probe(*planted(n=20), BOTH, progress=lambda done, total: steps.append((done, total)))
    done = [step[0] for step in steps]
    assert done == sorted(done)
    assert steps[-1][0] == steps[-1][1]
    assert len({step[1] for step in steps}) == 1


def test_bad_input_gets_a_sentence() -> None:
    features, labels = planted(n=20)
    broken = features.copy()
    broken[7, 1, 0, 2] = np.nan
    with pytest.raises(UserError, match="1 of 20 images have features that are not finite, the first is number 7"):
        fit_probe(broken, labels, BOTH)
    with pytest.raises(UserError, match="All images are of one class"):
        fit_probe(features, np.zeros(20, int), BOTH)
    with pytest.raises(UserError, match="Class number 4 has too few images to train on, 1"):
        fit_probe(features, np.where(np.arange(20) == 0, 4, labels), BOTH)
    with pytest.raises(ValueError, match="do not fit together"):
        fit_probe(features, labels, ("class",))


def test_a_probe_is_a_value() -> None:
    fitted = fit_probe(*planted(n=20), BOTH)
    with pytest.raises(AttributeError):
        fitted.layers = 2  # type: ignore[misc]
    assert replace(fitted, strength=1.0).layers == fitted.layers


def test_out_of_fold_is_the_probes_own_where_it_has_them() -> None:
    features, labels = planted(signal=0.7)
    fitted = fit_probe(features, labels, BOTH)
    assert out_of_fold(features, labels, fitted) is fitted.out_of_fold
    again = out_of_fold(features, labels, replace(fitted, out_of_fold=None))
    assert np.abs(again - fitted.out_of_fold).max() < 0.05  # the same fits, reached from another start


def test_out_of_fold_beyond_the_limit_has_not_seen_the_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = planted(n=300, width=100, signal=0.0)  # noise, which a fit would learn by heart
    monkeypatch.setattr(module, "LIMIT", 100)
    fitted = replace(fit_probe(features, labels, BOTH), strength=1e-5)
    found = out_of_fold(features, labels, fitted)
    assert found.shape == (300, 4)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert abs((found.argmax(axis=1) == labels).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 300)
    informative, labels = planted(n=300, signal=2.0)
    sharp = out_of_fold(informative, labels, fit_probe(informative, labels, BOTH))
    assert (sharp.argmax(axis=1) == labels).mean() > 0.8
