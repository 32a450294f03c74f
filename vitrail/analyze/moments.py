"""Means over images with their uncertainty, from images that come in batches and are not kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
from torch import Tensor

from vitrail.errors import UserError

Array = np.ndarray[Any, Any]


class Moments:
    """Mean and interval of an array of numbers over images; how they were batched does not matter.

    It keeps the mean and the sum of squared deviations from it, in float64, and merges a batch's own
    into them (Chan, Golub and LeVeque 1983): sums of squares would lose the spread of numbers that lie
    far from zero.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.count = 0
        """Images so far."""
        self._mean = np.zeros(shape)
        self._scatter = np.zeros(shape)

    def add(self, values: Tensor | Array) -> None:
        """Take in (B, *shape): the numbers of B images, possibly none."""
        if values.shape[1:] != self._mean.shape:
            raise ValueError(f"numbers of shape {tuple(values.shape[1:])} for moments of shape {self._mean.shape}")
        if not (batch := len(values)):
            return
        if isinstance(values, Tensor):
            values = values.detach().cpu().double().numpy()
        numbers = np.asarray(values, np.float64)  # (B, *shape)
        mean = numbers.mean(axis=0)
        gap, count = mean - self._mean, self.count + batch
        self._scatter += np.square(numbers - mean).sum(axis=0) + gap**2 * (self.count * batch / count)
        self._mean = self._mean + gap * (batch / count)
        self.count = count

    @property
    def mean(self) -> Array:
        """Over images, of ``shape``.

        Raises:
            UserError: there was no image.
        """
        if not self.count:
            raise UserError("There is no image to look at: name a folder that holds some.")
        return self._mean.copy()

    @property
    def variance(self) -> Array:
        """Over images, unbiased, of ``shape``; NaN for fewer than two."""
        return self._scatter / (self.count - 1) if self.count > 1 else np.full_like(self._scatter, np.nan)

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Student's t interval of the mean over images: low and high, each of ``shape``; NaN for one image.

        Raises:
            UserError: there was no image.
        """
        mean = self.mean
        if self.count < 2:
            return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        error = np.sqrt(self._scatter / (self.count - 1) / self.count)
        reach = scipy.special.stdtrit(self.count - 1, (1 + level) / 2) * error
        return mean - reach, mean + reach
