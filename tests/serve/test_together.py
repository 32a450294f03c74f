"""Each picture gets its own result, in whatever company it ran, and company's trouble ends with it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.serve.together import Together


def picture(number: float) -> Tensor:
    return torch.full((3, 2, 2), number)


def numbers(images: Tensor) -> list[float]:
    return [float(image[0, 0, 0]) for image in images]


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 8), st.integers(1, 8))
def test_each_gets_its_own_and_batches_are_no_larger_than_allowed(asked: list[int], most: int, askers: int) -> None:
    sizes: list[int] = []

    def run(images: Tensor) -> list[float]:
        sizes.append(len(images))
        return numbers(images)

    together = Together(run, most)
    with ThreadPoolExecutor(askers) as pool:
        found = list(pool.map(lambda number: together.submit(picture(number)).result(), asked))
    together.close()
    assert found == asked
    assert sum(sizes) == len(asked)
    assert max(sizes, default=0) <= most
    assert all(size == most or size.bit_count() == 1 for size in sizes)


def test_what_waits_while_the_model_is_busy_runs_together() -> None:
    sizes: list[int] = []
    busy, go = threading.Event(), threading.Event()

    def run(images: Tensor) -> list[float]:
        sizes.append(len(images))
        busy.set()
        assert go.wait(20)
        return numbers(images)

    together = Together(run, 4)
    first = together.submit(picture(0))
    assert busy.wait(20)
    others = [together.submit(picture(number)) for number in range(1, 7)]
    assert others[1].cancel()  # who asked went away
    go.set()
    assert first.result() == 0
    assert [other.result() for other in others if not other.cancelled()] == [1, 3, 4, 5, 6]
    together.close()
    assert sizes == [1, 4, 1]


def test_what_fills_no_batch_of_a_known_size_runs_with_those_that_come_next() -> None:
    sizes: list[int] = []
    busy, go = threading.Event(), threading.Event()
    late: list[Future[float]] = []

    def run(images: Tensor) -> list[float]:
        sizes.append(len(images))
        busy.set()
        assert go.wait(20)
        if sizes == [1, 4]:
            late.append(together.submit(picture(8)))
        return numbers(images)

    together = Together(run, 32)
    first = together.submit(picture(0))
    assert busy.wait(20)
    others = [together.submit(picture(number)) for number in range(1, 8)]
    go.set()
    assert [one.result() for one in (first, *others)] == list(range(8))
    assert late[0].result() == 8
    together.close()
    assert sizes == [1, 4, 4]


def test_a_failure_is_theirs_who_were_in_the_batch() -> None:
    def run(images: Tensor) -> list[float]:
        if (images == 13).any():
            raise MemoryError("too much")
        return numbers(images)

    together = Together(run, 1)
    unlucky, lucky = together.submit(picture(13)), together.submit(picture(7))
    with pytest.raises(MemoryError, match="too much"):
        unlucky.result()
    assert lucky.result() == 7
    together.close()


def test_closing_answers_what_was_submitted() -> None:
    together = Together(numbers, 2)
    futures = [together.submit(picture(number)) for number in range(9)]
    together.close()
    assert [future.result(timeout=0) for future in futures] == list(range(9))
