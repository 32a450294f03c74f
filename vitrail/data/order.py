"""Which sample comes when: pure functions of (seed, epoch, step), so that a step can be had without those before it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

Purpose = Literal["order", "view", "step", "sample"]


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """The random numbers that belong to one place, such as (epoch, sample): the same however one got there."""
    return np.random.default_rng([seed, get_args(Purpose).index(purpose), *place])


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Batches that cover all samples once."""
    return -(-samples // batch_size)


def batch_at(step: int, samples: int, batch_size: int, seed: int, repeats: int = 1) -> tuple[int, list[int]]:
    """The epoch that ``step`` falls in, and the places of its batch: place p shows sample p modulo ``samples``.

    Every epoch is another permutation of all samples, dealt to batches of nearly one size. For an even
    ``batch_size`` it is dealt in pairs, so that positions 2k and 2k + 1 of an epoch always share a batch.
    With ``repeats`` each of the batch's samples stands in it so often, at places of its own (repeated augmentation,
    1901.09335), one after all the others: neighbours are of different samples.
    """
    batch_size //= repeats
    steps = steps_per_epoch(samples, batch_size)
    epoch, place = divmod(step, steps)
    order = _order(samples, seed, epoch)
    together = 2 if batch_size % 2 == 0 else 1
    start, stop = (together * (-(-samples // together) * edge // steps) for edge in (place, place + 1))
    batch = [int(index) for index in order[start:stop]]
    return epoch, [index + samples * repeat for repeat in range(repeats) for index in batch]


@lru_cache(maxsize=4)
def _order(samples: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(samples)


def pieces(batch: Sequence[int], count: int) -> list[list[int]]:
    """A batch in at most ``count`` parts of nearly one size, none empty and no pair of partners divided."""
    pairs = -(-len(batch) // 2)
    count = min(count, pairs)
    edges = [2 * (pairs * place // count) for place in range(count + 1)]
    return [list(batch[start:stop]) for start, stop in pairwise(edges)]
