"""A linear probe: regularised multinomial logistic regression on frozen features.

The protocol is DINOv2's linear evaluation (arXiv 2304.07193, appendix B.3: how many of the last
blocks, with or without the mean of the patch tokens) with the convex problem solved instead of
descended by SGD. How many blocks, which parts and how strong the penalty is: cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

from vitrail.config import Part
from vitrail.errors import UserError

Array = np.ndarray[Any, Any]

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, *(10.0 ** (-exponent / 2) for exponent in range(9, 15)))
"""Penalties tried, strongest first; a candidate's path ends where its held-out log-loss turns up."""
FOLDS = 5
LIMIT = 4000
"""Cross-validation sees at most about this many images, drawn evenly from the classes; the final fit sees all."""
ALL_FOLDS = 150_000
"""Up to this many images times classes every fold is held out in turn; beyond, only one, for a fifth of the work."""
DOUBLE = 2**23
"""Up to this many numbers the final fit is done in double precision; beyond, memory counts for more."""


@dataclass(frozen=True)
class Candidate:
    """What cross-validation says about one choice of features at its best penalty."""

    parts: tuple[Part, ...]
    layers: int
    strength: float
    accuracy: float
    log_loss: float


@dataclass(frozen=True)
class Probe:
    """A linear head on raw features: ``layers`` last blocks (oldest first), of each the ``parts``, D numbers each."""

    parts: tuple[Part, ...]
    layers: int
    strength: float
    """The penalty, lambda in mean log-loss + lambda/2 |W|^2 over features scaled to a mean square norm of 1;
    scikit-learn's C is 1 / (lambda n)."""
    weight: Array
    """(K, F) with F = layers x parts x D."""
    bias: Array
    """(K,)"""
    cross_validation: tuple[Candidate, ...]
    out_of_fold: Array | None
    """(n, K) probabilities of every image from a fit that did not see it; None when not every image was held out
    (then see ``out_of_fold``)."""

    def logits(self, features: Array) -> Array:
        """(n, L, P, D) as given to ``fit_probe``, or with more blocks before them -> (n, K)."""
        chosen = features[:, features.shape[1] - self.layers :, : len(self.parts)]
        return chosen.reshape(len(features), -1) @ self.weight.T + self.bias


def fit_probe(
    features: Array,
    labels: Array,
    parts: tuple[Part, ...],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """Choose the features and the penalty by cross-validation, then fit on everything.

    Candidates are the last 1 to L blocks, with the first part alone or all parts. Each is judged by
    the pooled log-loss of its held-out predictions (five folds, classes dealt evenly; one of them for
    very many images and classes): with few images accuracy moves in steps too coarse to choose by.
    The penalty is per mean log-loss, so that a value chosen on part of the images means the same on
    all of them.

    Args:
        features: (n, L, P, D) the last L blocks, oldest first, P parts of each.
        labels: (n,) integers 0 to K - 1, each at least twice.
        parts: the names of the P parts.
        progress: called with (steps done, steps in all).

    Raises:
        UserError: fewer than two classes, a class with fewer than two images, features that are not finite.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    _check(features, labels, parts)
    rows = _subset(labels, seed)
    folds = _deal(labels[rows], FOLDS, seed)
    tried = FOLDS if len(rows) * (labels.max() + 1) <= ALL_FOLDS else 1
    folds = np.where(folds < tried, folds, -1)
    judged = labels[rows[folds >= 0]]
    depths = range(1, features.shape[1] + 1)
    choices = [(chosen, layers) for chosen in dict.fromkeys((parts[:1], parts)) for layers in depths]
    total = len(choices) * len(STRENGTHS) + 1
    candidates: list[Candidate] = []
    best: tuple[Candidate, Array] | None = None
    for index, (chosen, layers) in enumerate(choices):

        def step(done: int, before: int = index * len(STRENGTHS)) -> None:
            if progress is not None:
                progress(before + done, total)

        x, _, _ = _scaled(features[rows, -layers:, : len(chosen)])
        strength, held_out = _cross_validate(x, labels[rows], folds, step)
        accuracy, log_loss = _score(held_out, judged)
        candidates.append(Candidate(chosen, layers, strength, accuracy, log_loss))
        if best is None or log_loss < best[0].log_loss:
            best = candidates[-1], held_out
    assert best is not None
    winner, held_out = best
    weight, bias = fit_logistic(features[:, -winner.layers :, : len(winner.parts)], labels, winner.strength)
    if progress is not None:
        progress(total, total)
    return Probe(
        parts=winner.parts,
        layers=winner.layers,
        strength=winner.strength,
        weight=weight,
        bias=bias,
        cross_validation=tuple(candidates),
        out_of_fold=held_out if len(judged) == len(labels) else None,
    )


def out_of_fold(features: Array, labels: Array, probe: Probe, seed: int = 0) -> Array:
    """(n, K) probabilities of every image from a fit that did not see it: the probe's own where it has them.

    For very many images, the fits at the probe's features and penalty are made again with every fold
    held out in turn; they see what cross-validation sees, and the images beyond ``LIMIT`` are dealt
    out among them. It costs about what one candidate of the cross-validation does.

    Args:
        features, labels, seed: as given to ``fit_probe``.
    """
    if probe.out_of_fold is not None:
        return probe.out_of_fold
    chosen = np.asarray(features)[:, -probe.layers :, : len(probe.parts)]
    labels = np.asarray(labels)
    rows = _subset(labels, seed)
    folds = _deal(labels[rows], FOLDS, seed)
    x, mean, scale = _scaled(chosen[rows])
    rotation = _rotate(x)
    train = folds[:, None] != np.arange(FOLDS)
    weight, bias = _solve(rotation, labels[rows], train, probe.strength, None, tolerance=1e-4)
    fold_of = np.arange(len(labels)) % FOLDS
    fold_of[rows] = folds
    probabilities = np.empty((len(labels), weight.shape[2]), np.float32)
    for fold in range(FOLDS):
        held_out = fold_of == fold
        scaled = (chosen[held_out].reshape(-1, len(mean)) - mean) * scale
        logits = scaled @ (rotation.basis @ weight[:, fold]) + bias[fold]
        probabilities[held_out] = scipy.special.softmax(logits, axis=1)
    return probabilities


def fit_logistic(features: Array, labels: Array, strength: float) -> tuple[Array, Array]:
    """Fit one penalty on all rows: (n, ...) features -> (K, F) weight and (K,) bias acting on the raw features."""
    x, mean, scale = _scaled(features)
    small = x.size <= DOUBLE
    rotation = _rotate(x.astype(np.float64) if small else x)
    everything = np.ones((len(x), 1), bool)
    w, b = _solve(rotation, labels, everything, strength, None, tolerance=1e-13 if small else 1e-8)
    weight = (rotation.basis @ w[:, 0]).T.astype(np.float64) * scale
    return weight.astype(np.float32), (b[0] - weight @ mean).astype(np.float32)


def _check(features: Array, labels: Array, parts: tuple[Part, ...]) -> None:
    if features.ndim != 4 or features.shape[2] != len(parts) or labels.shape != features.shape[:1]:
        raise ValueError(f"features {features.shape}, labels {labels.shape} and parts {parts} do not fit together")
    if not labels.size or labels.max() < 1:
        raise UserError("All images are of one class: a classifier needs at least two, so add photos of another.")
    counts = np.bincount(labels)
    if counts.min() < 2:
        raise UserError(
            f"Class number {counts.argmin()} has too few images to train on, {counts.min()}: every class needs "
            "at least 2, so add photos or leave the class out."
        )
    check_finite(features)


def check_finite(features: Array) -> None:
    """Raise UserError unless all numbers of (n, ...) features are finite; the first image at fault is named."""
    finite = np.fromiter((np.isfinite(row).all() for row in features), bool, len(features))
    if not finite.all():
        raise UserError(
            f"{np.count_nonzero(~finite)} of {len(finite)} images have features that are not finite, the first is "
            f"number {finite.argmin()}: compute them in float32, or check the weights."
        )


def _shuffled(labels: Array, seed: int) -> Array:
    """Rows in random order, class after class; the same whatever numbers the classes bear."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first, which = np.unique(labels[order], return_index=True, return_inverse=True)
    return order[np.argsort(first[which], kind="stable")]


def _deal(labels: Array, hands: int, seed: int) -> Array:
    """(n,) the fold of each row, dealt like cards: sizes differ by one at most, in all and in each class.

    So a class of two stands in two folds, and no fit is without it.
    """
    folds = np.empty(len(labels), np.int64)
    folds[_shuffled(labels, seed)] = np.arange(len(labels)) % hands
    return folds


def _subset(labels: Array, seed: int) -> Array:
    """The rows cross-validation sees, ascending: the same share of every class, two at least."""
    if len(labels) <= LIMIT:
        return np.arange(len(labels))
    order = _shuffled(labels, seed)
    kept = []
    for label in np.unique(labels):
        own = order[labels[order] == label]
        kept.append(own[: max(2, len(own) * LIMIT // len(labels))])
    return np.sort(np.concatenate(kept))


def _scaled(features: Array) -> tuple[Array, Array, Array]:
    """(n, ...) -> x (n, F) = (raw - mean) * scale: unit variance over sqrt(F), so |x|^2 is 1 on average.

    A column that does not vary gets scale 0.
    """
    x = features.reshape(len(features), -1).astype(np.float32)
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x -= mean
    deviation = np.sqrt(np.einsum("nf,nf->f", x, x, dtype=np.float64) / len(x))
    varies = deviation > 1e-6 * np.abs(mean)
    scale = np.zeros_like(mean)
    scale[varies] = 1 / (deviation[varies] * np.sqrt(np.count_nonzero(varies)))
    x *= scale
    return x, mean, scale


@dataclass(frozen=True)
class _Rotation:
    """x = z @ basis.T with orthonormal columns, the axes of x's own ellipsoid.

    The ridge penalty does not see a rotation, so the problem is the same; it has min(n, F) columns, and in
    these axes its curvature is nearly diagonal, which is what makes the solver quick.
    """

    z: Array
    """(n, r)"""
    basis: Array
    """(F, r)"""
    power: Array
    """(r,) squared singular values of x."""


def _rotate(x: Array) -> _Rotation:
    wide = x.shape[0] <= x.shape[1]
    power, vectors = scipy.linalg.eigh(x @ x.T if wide else x.T @ x, driver="evd")
    if not wide:
        return _Rotation(x @ vectors, vectors, np.maximum(power, 0))
    kept = power > power[-1] * len(x) * np.finfo(x.dtype).eps  # the others are rounding
    length = np.sqrt(power[kept])
    return _Rotation(vectors[:, kept] * length, (x.T @ vectors[:, kept]) / length, power[kept])


def _cross_validate(x: Array, labels: Array, folds: Array, step: Callable[[int], None]) -> tuple[float, Array]:
    """Walk down the penalties, all folds at once, each from the last's solution.

    Args:
        folds: (n,) which fold's fit each row is held out of; -1: of none.

    Returns:
        The best penalty, and the probabilities it gives the held-out rows, in their order.
    """
    rotation = _rotate(x)
    train = folds[:, None] != np.unique(folds[folds >= 0])  # (n, M)
    judged = labels[folds >= 0]
    best, best_loss, probabilities = STRENGTHS[0], np.inf, np.empty(0)
    start = None
    for index, strength in enumerate(STRENGTHS):
        start = _solve(rotation, labels, train, strength, start, tolerance=1e-4)
        weight, bias = start
        held_out = scipy.special.softmax((np.tensordot(rotation.z, weight, 1) + bias)[~train], axis=1)
        log_loss = _score(held_out, judged)[1]
        if log_loss >= best_loss:
            break
        best, best_loss, probabilities = strength, log_loss, held_out
        step(index + 1)
    step(len(STRENGTHS))
    return best, probabilities


def _solve(
    rotation: _Rotation,
    labels: Array,
    train: Array,
    strength: float,
    start: tuple[Array, Array] | None,
    tolerance: float,
) -> tuple[Array, Array]:
    """Minimise mean log-loss + strength/2 |W|^2 for M sets of rows at once by L-BFGS.

    The variables are scaled by the curvature expected along each axis (Boehning's bound with the mean of
    p(1 - p) at the start in place of its maximum).

    Args:
        train: (n, M) the rows each problem sees.
        start: a solution to begin from, as returned.

    Returns:
        weight (r, M, K) and bias (M, K).
    """
    z, (n, problems), classes = rotation.z, train.shape, int(labels.max()) + 1
    shape = (z.shape[1], problems, classes)
    share = (train / train.sum(axis=0)).astype(z.dtype)[..., None]  # (n, M, 1)
    target = np.eye(classes, dtype=z.dtype)[labels][:, None]  # (n, 1, K)
    if start is None:
        start = np.zeros(shape, z.dtype), np.zeros(shape[1:], z.dtype)
    chance = scipy.special.softmax(np.tensordot(z, start[0], 1) + start[1], axis=2)
    curvature = max(float((chance * (1 - chance)).mean()), 1e-4)
    scale = (1 / np.sqrt(strength + curvature * rotation.power / n)).astype(z.dtype)[:, None, None]
    bias_scale = 1 / np.sqrt(curvature)
    size = int(np.prod(shape))

    def unpack(variables: Array) -> tuple[Array, Array]:
        weight = variables[:size].astype(z.dtype).reshape(shape) * scale
        return weight, (variables[size:] * bias_scale).astype(z.dtype).reshape(shape[1:])

    def objective(variables: Array) -> tuple[float, Array]:
        weight, bias = unpack(variables)
        logits = (z @ weight.reshape(len(weight), problems * classes)).reshape(n, problems, classes) + bias
        logits -= logits.max(axis=2, keepdims=True)
        exponent = np.exp(logits)
        normaliser = exponent.sum(axis=2, keepdims=True)
        losses = np.log(normaliser) - (logits * target).sum(axis=2, keepdims=True)
        value = np.sum(losses * share, dtype=np.float64) + strength / 2 * np.sum(np.square(weight, dtype=np.float64))
        slope = (exponent / normaliser - target) * share  # (n, M, K)
        weight_slope = (z.T @ slope.reshape(n, -1)).reshape(shape) + strength * weight
        return float(value), np.concatenate(
            [(weight_slope * scale).ravel(), slope.sum(axis=0).ravel() * bias_scale], dtype=np.float64
        )

    first = np.concatenate([(start[0] / scale).ravel(), start[1].ravel() / bias_scale], dtype=np.float64)
    options = {"maxiter": 1000, "maxfun": 2000, "ftol": tolerance, "gtol": 1e-9}
    return unpack(scipy.optimize.minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x)


def _score(probabilities: Array, labels: Array) -> tuple[float, float]:
    """Accuracy and mean log-loss of (n, K) probabilities."""
    own = probabilities[np.arange(len(labels)), labels]
    log_loss = -np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean()
    return float((probabilities.argmax(axis=1) == labels).mean()), float(log_loss)
