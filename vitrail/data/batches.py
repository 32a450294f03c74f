"""Paths -> batches, decoded by a few threads a little ahead of the consumer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch

from vitrail.config import Preprocessing
from vitrail.data.ahead import ahead
from vitrail.data.preprocess import load
from vitrail.data.read import UnreadableImage


@dataclass(frozen=True)
class Batch:
    """What ``batch_size`` consecutive paths gave, in order; B of them could be read, possibly none."""

    start: int
    """Position in the input of the first of ``paths``."""
    paths: list[Path]
    """All the paths of this batch, read or not: ``paths[position - start]`` for a position."""
    index: list[int]
    """Position in the input of each of the B images."""
    images: torch.Tensor
    """(B, C, H, W) float32, standardised."""
    failures: list[tuple[int, str]]
    """Position in the input and reason, for each picture that could not be read."""


def batches(
    paths: Iterable[str | Path], how: Preprocessing, batch_size: int, threads: int | None = None, quick: bool = False
) -> Iterator[Batch]:
    """Read, preprocess and stack pictures, in the order of ``paths``, which may be endless.

    At most one batch and a few pictures are decoded ahead. However the loop over this generator
    ends (a break, an exception, Ctrl-C), the threads have ended when it has.

    Args:
        batch_size: how many paths a batch covers; the last may have fewer.
        threads: how many decode at once; by default one for each processor this process may use, up to 8.
        quick: as for ``vitrail.data.preprocess.load``.
    """
    loaded = ahead(_places(paths, how, batch_size), lambda place: _load(place, how, quick), batch_size, threads)
    with closing(loaded):
        for start in count(0, batch_size):
            if not (taken := list(islice(loaded, batch_size))):
                return
            yield _collect(taken, start)


@dataclass(frozen=True)
class _Place:
    """Where a picture goes, so that the thread that decodes it writes it there and nobody has to stack."""

    path: Path
    batch: np.ndarray
    """(B, C, H, W) float32, for all pictures of a batch."""
    row: int


def _places(paths: Iterable[str | Path], how: Preprocessing, batch_size: int) -> Iterator[_Place]:
    remaining = iter(paths)
    while taken := list(islice(remaining, batch_size)):
        batch = np.empty((len(taken), 3, *how.size), np.float32)  # what is read is RGB
        yield from (_Place(Path(path), batch, row) for row, path in enumerate(taken))


def _load(place: _Place, how: Preprocessing, quick: bool) -> tuple[_Place, str | None]:
    """The same place, once the picture is there, or with the reason why there is none."""
    try:
        load(place.path, how, out=place.batch[place.row], quick=quick)
    except UnreadableImage as error:
        return place, error.reason
    return place, None


def _collect(taken: list[tuple[_Place, str | None]], start: int) -> Batch:
    read = [place.row for place, reason in taken if reason is None]
    failures = [(start + place.row, reason) for place, reason in taken if reason is not None]
    images = taken[0][0].batch
    return Batch(
        start,
        [place.path for place, _ in taken],
        [start + row for row in read],
        torch.from_numpy(images[read] if failures else images),
        failures,
    )
