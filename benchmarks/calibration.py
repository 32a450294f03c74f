"""Whether confidence can be believed: ``VITRAIL_DATA=folder python -m benchmarks.calibration``.

The expected calibration error (15 bins) of the probe on ``imagenette-subset``'s held-out photos, before
and after temperature scaling, at 224 and 112 pixels:

- fitted on one half of the held-out photos, measured on the other, both ways. The halves: of each
  class the photos in the order of their file name's SHA-256; every other one, from the first, is half A.
- fitted on out-of-fold predictions of the training photos, measured on all held-out ones. This is what
  ``vitrail finetune`` does for a probe.

An error of 500 photos is itself noisy and never 0: ``noise`` is the mean error of 2,000 simulated sets in which every
photo is right with exactly the probability claimed. A minute on two cores with the features in the cache.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from scipy.special import softmax

from benchmarks.frozen_features import PARTS, Labelled, imagenette
from benchmarks.results_file import record
from vitrail.evaluate.calibration import coverage_at, fit_temperature, logarithm
from vitrail.evaluate.metrics import calibration_error
from vitrail.evaluate.probe import fit_probe, out_of_fold


def main() -> None:
    """Run all of it, print and record what came out."""
    findings: dict[str, Any] = {}
    for resolution in (224, 112):
        train, val = imagenette(resolution)
        probe = fit_probe(train.features, train.labels, PARTS)
        logits, labels, half_a = probe.logits(val.features), val.labels, _half_a(val)
        own = fit_temperature(logarithm(out_of_fold(train.features, train.labels, probe)), train.labels)
        ways = {
            "fitted on half A, measured on B": (fit_temperature(logits[half_a], labels[half_a]), ~half_a),
            "fitted on half B, measured on A": (fit_temperature(logits[~half_a], labels[~half_a]), half_a),
            "fitted out of fold, measured on all": (own, np.ones(len(labels), bool)),
        }
        found = {name: _measure(logits[rows], labels[rows], temperature) for name, (temperature, rows) in ways.items()}
        for name, values in found.items():
            print(resolution, name, values, flush=True)
        findings[str(resolution)] = found
    print(record("calibration", findings))


def _half_a(val: Labelled) -> np.ndarray:
    """(n,) True for half A; half of each class."""
    digests = np.array([hashlib.sha256(path.name.encode()).hexdigest() for path in val.paths])
    half = np.zeros(len(digests), bool)
    for label in np.unique(val.labels):
        own = np.flatnonzero(val.labels == label)
        half[own[np.argsort(digests[own])][::2]] = True
    return half


def _measure(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, float]:
    correct = logits.argmax(axis=1) == labels
    before, after = _confidence(logits, 1.0), _confidence(logits, temperature)
    draws = np.random.default_rng(0).random((2000, len(labels))) < after
    return {
        "temperature": temperature,
        "before": calibration_error(before, correct),
        "after": calibration_error(after, correct),
        "noise": float(np.mean([calibration_error(after, draw) for draw in draws])),
        "log-loss before": _log_loss(logits, labels, 1.0),
        "log-loss after": _log_loss(logits, labels, temperature),
        "coverage at 95 % accuracy": coverage_at(after, correct, 0.95),
        "coverage at 99 % accuracy": coverage_at(after, correct, 0.99),
    }


def _confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    surest: np.ndarray = softmax(logits / temperature, axis=1).max(axis=1)
    return surest


def _log_loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels]).mean())


if __name__ == "__main__":
    main()
