"""Few-shot classification by regularised least squares on frozen features (ViT section 4.1, "few-shot")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from vitrail.errors import UserError

Array = np.ndarray[Any, Any]
STRENGTHS = tuple(10.0**exponent for exponent in range(-6, 5))
"""Penalties that are tried, in units of the mean square length of the features about their mean."""


@dataclass(frozen=True)
class LeastSquares:
    """A linear map of features to {-1, 1}^K targets: W minimises |X W^T + b - Y|^2 + lambda |W|^2, b being free."""

    weight: Array
    """(K, F)"""
    bias: Array
    """(K,)"""
    strength: float
    """lambda"""

    def logits(self, features: Array) -> Array:
        """(n, F) -> (n, K)."""
        found: Array = features @ self.weight.T + self.bias
        return found


def fit_least_squares(features: Array, labels: Array, classes: int, strength: float | None = None) -> LeastSquares:
    """Solve in closed form; for fewer pictures than features no larger than they are many.

    Args:
        features: (n, F)
        labels: (n,), 0 to ``classes`` - 1.
        strength: lambda; None: that of ``STRENGTHS`` with the least error when each picture is left out in turn,
            which for least squares is known without fitting again. The paper does not say how it chose.

    Raises:
        UserError: features that are not finite or are all the same.
    """
    x = np.asarray(features, np.float64)
    if not np.isfinite(x).all():
        raise UserError("Some features are not finite: run the model in float32, or check its weights.")
    targets = np.where(np.arange(classes) == np.asarray(labels)[:, None], 1.0, -1.0)  # (n, K)
    centre, middle = x.mean(axis=0), targets.mean(axis=0)
    left, lengths, right = scipy.linalg.svd(x - centre, full_matrices=False)  # (n, r), (r,), (r, F)
    if not lengths.any():
        raise UserError("All features are the same, so no class can be told from another: check the weights.")
    squares, upon = lengths**2, left.T @ (targets - middle)  # (r,), (r, K)
    if strength is None:
        unit = squares.sum() / len(x)
        errors = [_left_out(left, squares, upon, targets - middle, share * unit) for share in STRENGTHS]
        strength = STRENGTHS[int(np.argmin(errors))] * unit
    weight = ((lengths / (squares + strength))[:, None] * upon).T @ right  # (K, F)
    return LeastSquares(weight, middle - weight @ centre, float(strength))


def _left_out(left: Array, squares: Array, upon: Array, targets: Array, strength: float) -> float:
    """Mean square error of the pictures, each by a fit to the others: residuals over 1 less the leverage."""
    shrunk = squares / (squares + strength)
    residuals = targets - left @ (shrunk[:, None] * upon)  # (n, K)
    leverage = (left**2) @ shrunk + 1 / len(left)  # (n,), of the free bias too
    return float(((residuals / np.maximum(1 - leverage, 1e-12)[:, None]) ** 2).mean())
