"""Paths -> batches, decoded by a few threads a little ahead of the consumer."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from vitrail.config import Preprocessing
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
    remaining = (Path(path) for path in paths)
    pool = ThreadPoolExecutor(threads or min(_processors(), 8), thread_name_prefix="vitrail-read")
    ahead: deque[tuple[Path, Future[torch.Tensor | str]]] = deque()
    start = 0
    try:
        while True:
            wanted = 2 * batch_size - len(ahead)
            ahead.extend((path, pool.submit(_load, path, how)) for path in islice(remaining, wanted))
            if not ahead:
                return
            yield _collect([ahead.popleft() for _ in range(min(batch_size, len(ahead)))], start, how)
            start += batch_size
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(path: Path, how: Preprocessing) -> torch.Tensor | str:
    """The picture's tensor, or the reason why there is none."""
    try:
        return preprocess(read_image(path), how)
    except UnreadableImage as error:
        return error.reason


def _collect(loaded: list[tuple[Path, Future[torch.Tensor | str]]], start: int, how: Preprocessing) -> Batch:
    index: list[int] = []
    tensors: list[torch.Tensor] = []
    failures: list[tuple[int, str]] = []
    for position, (_, future) in enumerate(loaded, start):
        result = future.result()
        if isinstance(result, str):
            failures.append((position, result))
        else:
            index.append(position)
            tensors.append(result)
    images = torch.stack(tensors) if tensors else torch.empty(0, len(how.mean), *how.size)
    return Batch(start, [path for path, _ in loaded], index, images, failures)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
