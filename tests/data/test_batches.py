"""Batches in order, a little ahead, and no thread left behind."""

from __future__ import annotations

import gc
import threading
import types
import weakref
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.config import Preprocessing
from vitrail.data.batches import batches
from vitrail.data.preprocess import preprocess
from vitrail.data.read import read_image
from vitrail.errors import UserError

HOW = Preprocessing(size=(16, 12))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Eleven pictures, of which 3 and 7 are none."""
    rng = np.random.default_rng(0)
    found = [tmp_path / f"{n:02d}.png" for n in range(11)]
    for n, path in enumerate(found):
        Image.fromarray(rng.integers(0, 256, (20 + 37 * (n % 3), 30, 3), dtype=np.uint8)).save(path)
    found[3].write_bytes(b"")
    found[7].write_bytes(b"words")
    return found


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vitrail-read")]


@pytest.mark.parametrize("threads", [1, 3, None])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_order_and_failures(paths: list[Path], size: int, threads: int | None) -> None:
    found = list(batches(iter(paths), HOW, size, threads))
    assert [path for batch in found for path in batch.paths] == paths
    assert [position for batch in found for position in batch.index] == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert [failure for batch in found for failure in batch.failures] == [(3, "zero bytes"), (7, "not an image")]
    assert [batch.start for batch in found] == list(range(0, 11, size))
    for batch in found:
        assert batch.images.shape == (len(batch.index), 3, 16, 12)
        for position, image in zip(batch.index, batch.images, strict=True):
            assert batch.paths[position - batch.start] == paths[position]
            assert torch.equal(image, preprocess(read_image(paths[position]), HOW))
    assert not readers()


def test_no_paths() -> None:
    assert list(batches([], HOW, 4)) == []


def endless(path: Path, asked: list[int]) -> Iterator[Path]:
    for n in count():
        asked.append(n)
        yield path


def test_look_ahead_is_bounded(paths: list[Path]) -> None:
    asked: list[int] = []
    stream = batches(endless(paths[0], asked), HOW, batch_size=3, threads=2)
    for number in range(1, 5):
        next(stream)
        assert 3 * number < len(asked) <= 3 * (number + 1)
    stream.close()  # type: ignore[attr-defined]
    assert not readers()


def test_at_most_two_batches_wait_behind_the_one_in_use(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def empty(*arguments: object) -> np.ndarray:
        array = np.ndarray(*arguments)  # type: ignore[call-overload]
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr("vitrail.data.batches.np", types.SimpleNamespace(empty=empty, float32=np.float32))
    for number, _ in enumerate(batches(endless(paths[0], []), HOW, 3, 2)):
        gc.collect()
        assert sum(made_one() is not None for made_one in made) <= 3
        if number == 3:
            break
    assert len(made) >= 4


def test_a_batch_may_be_larger_than_memory_as_long_as_there_are_few_pictures(paths: list[Path]) -> None:
    (batch,) = batches(paths, HOW, 10**12)
    assert len(batch.images) == 9


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_no_thread_outlives_the_loop(paths: list[Path], error: type[BaseException]) -> None:
    def consume() -> None:
        for _ in batches(endless(paths[0], []), HOW, 2, 2):
            assert readers()
            raise error

    with pytest.raises(error):
        consume()
    assert not readers()


def test_an_error_in_the_paths_reaches_the_consumer(paths: list[Path]) -> None:
    def named() -> Iterator[Path]:
        yield paths[0]
        raise UserError("There is no such folder.")

    with pytest.raises(UserError, match="no such folder"):
        list(batches(named(), HOW, 4))
    assert not readers()
