"""Paths -> batches, decoded by a few threads a little ahead of the consumer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import torch

from vitrail.config import Preprocessing
from vitrail.data.ahead import ahead
from vitrail.data.preprocess import preprocess
from vitrail.data.read import UnreadableImage, read_image


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
    paths: Iterable[str | Path], how: Preprocessing, batch_size: int, threads: int | None = None
) -> Iterator[Batch]:
    """Read, preprocess and stack pictures, in the order of ``paths``, which may be endless.

    At most one batch and a few pictures are decoded ahead. However the loop over this generator
    ends (a break, an exception, Ctrl-C), the threads have ended when it has.

    Args:
        batch_size: how many paths a batch covers; the last may have fewer.
        threads: how many decode at once; by default one for each processor this process may use, up to 8.
    """
    loaded = ahead(paths, lambda path: (Path(path), _load(Path(path), how)), batch_size, threads)
    with closing(loaded):
        for start in count(0, batch_size):
            if not (taken := list(islice(loaded, batch_size))):
                return
            yield _collect(taken, start, how)


def _load(path: Path, how: Preprocessing) -> torch.Tensor | str:
    """The picture's tensor, or the reason why there is none."""
    try:
        return preprocess(read_image(path), how)
    except UnreadableImage as error:
        return error.reason


def _collect(loaded: list[tuple[Path, torch.Tensor | str]], start: int, how: Preprocessing) -> Batch:
    read = [(position, result) for position, (_, result) in enumerate(loaded, start) if not isinstance(result, str)]
    failures = [(position, result) for position, (_, result) in enumerate(loaded, start) if isinstance(result, str)]
    tensors = [tensor for _, tensor in read]
    images = torch.stack(tensors) if tensors else torch.empty(0, len(how.mean), *how.size)
    return Batch(start, [path for path, _ in loaded], [position for position, _ in read], images, failures)
