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


class Busy:
    """A model that holds its first batch until it is told to go on."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.busy, self.go = threading.Event(), threading.Event()

    def __call__(self, images: Tensor) -> list[float]:
        self.sizes.append(len(images))
        self.busy.set()
        assert self.go.wait(20)
        return numbers(images)


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
    assert all(size == most or 4 * size >= 3 << (size - 1).bit_length() for size in sizes), "a quarter is filled up"


def test_what_waits_while_the_model_is_busy_runs_together() -> None:
    model = Busy()
    together = Together(model, 4)
    first = together.submit(picture(0))
    assert model.busy.wait(20)
    others = [together.submit(picture(number)) for number in range(1, 7)]
    assert others[1].cancel()  # who asked went away
    model.go.set()
    assert first.result() == 0
    assert [other.result() for other in others if not other.cancelled()] == [1, 3, 4, 5, 6]
    together.close()
    assert model.sizes == [1, 4, 1]


@pytest.mark.parametrize(
    ("waiting", "most", "sizes"),
    [
        (2, 32, [2]),
        (3, 32, [3]),
        (5, 32, [4, 1]),
        (6, 32, [6]),
        (7, 32, [7]),
        (11, 32, [8, 3]),
        (12, 32, [12]),
        (23, 32, [16, 7]),
        (31, 32, [31]),
        (33, 32, [32, 1]),
        (4, 5, [4]),
        (5, 5, [5]),
        (9, 10, [8, 1]),
        (13, 14, [13]),
    ],
)
def test_a_batch_is_filled_up_by_a_quarter_at_most_or_as_large_as_allowed(
    waiting: int, most: int, sizes: list[int]
) -> None:
    model = Busy()
    together = Together(model, most)
    together.submit(picture(0))
    assert model.busy.wait(20)
    others = [together.submit(picture(number)) for number in range(waiting)]
    model.go.set()
    together.close()
    assert [other.result() for other in others] == list(range(waiting))
    assert model.sizes == [1, *sizes]


def test_what_would_leave_a_batch_too_empty_runs_with_those_that_come_next() -> None:
    late: list[Future[float]] = []

    class Joined(Busy):
        def __call__(self, images: Tensor) -> list[float]:
            if len(images) == 4:
                late.append(together.submit(picture(8)))
            return super().__call__(images)

    model = Joined()
    together = Together(model, 32)
    first = together.submit(picture(0))
    assert model.busy.wait(20)
    others = [together.submit(picture(number)) for number in range(1, 6)]
    model.go.set()
    assert [one.result() for one in (first, *others)] == list(range(6))
    assert late[0].result() == 8
    together.close()
    assert model.sizes == [1, 4, 2]


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
