"""What a step learns from: its places, and their views, made ahead by threads or processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitrail.data.ahead import ahead
from vitrail.data.order import batch_at, generator, pieces
from vitrail.settings import TrainSettings

View = Callable[[int, np.random.Generator], Tensor]
"""Sample index and the random numbers of its view -> what the model is to see of it."""
Batch = tuple[int, list[int], Iterator[tuple[list[int], Tensor]]]
"""Epoch, places, and for each piece of the batch its places and their views (B, ...)."""
PORTION = 16
"""Of views that are made in one go: at most so many, and of a batch no fewer portions than that."""


def batches_from(first: int, view: View, samples: int, settings: TrainSettings) -> Generator[Batch, None, None]:
    """The batches of the steps from ``first`` on, their views made a little ahead."""
    steps = range(first, settings.steps)

    def batch_of(step: int) -> tuple[int, list[int]]:
        return batch_at(step, samples, settings.batch_size, settings.seed, settings.repeats)

    # Threads that hand over small views one by one keep taking Python's lock from the step that is computed meanwhile;
    # sixteen portions of a batch are enough to share out.
    together = min(PORTION, max(1, settings.batch_size // settings.accumulate // PORTION))

    def portions(epoch: int, batch: list[int]) -> Iterator[tuple[int, list[int]]]:
        for piece in pieces(batch, settings.accumulate):
            for start in range(0, len(piece), together):
                yield epoch, piece[start : start + together]

    handed = (portion for step in steps for portion in portions(*batch_of(step)))
    depth = 2 * -(-settings.batch_size // settings.accumulate // together)
    with closing(ahead(handed, _Load(view, settings.seed, samples), depth, workers=settings.workers)) as loaded:
        for step in steps:
            yield (
                *(batch := batch_of(step)),
                (
                    (piece, torch.from_numpy(np.concatenate([next(loaded) for _ in piece[::together]])))
                    for piece in pieces(batch[1], settings.accumulate)
                ),
            )


@dataclass(frozen=True)
class _Load:
    """Makes the views of some places of an epoch, as an array: those can be sent from one process to another."""

    view: View
    seed: int
    samples: int

    def __call__(self, portion: tuple[int, list[int]]) -> np.ndarray:
        epoch, places = portion
        return np.stack([self._one(epoch, place) for place in places])

    def _one(self, epoch: int, place: int) -> np.ndarray:
        array: np.ndarray = self.view(place % self.samples, generator(self.seed, "view", epoch, place)).numpy()
        return array
