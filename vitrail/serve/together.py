"""Pictures of many requests through a model together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Together(Generic[Result]):
    """One thread that runs what waits whenever it is free, so that a lone picture never waits for company.

    Engines are built for batches of powers of two, and fill up others. So a batch is as large as allowed, a power of
    two, or so near to one that filling it up wastes at most a quarter; the rest runs with those that come next.

    Args:
        run: (B, C, H, W) -> one result a picture. It is only ever called from one thread.
        most: pictures that it is given at once.
    """

    def __init__(self, run: Callable[[Tensor], Sequence[Result]], most: int) -> None:
        self._run = run
        self._most = most
        self._waiting: queue.SimpleQueue[tuple[Tensor, Future[Result]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="vitrail-model", daemon=True)
        self._thread.start()

    def submit(self, image: Tensor) -> Future[Result]:
        """(C, H, W) -> its result, or what running its batch raised."""
        future: Future[Result] = Future()
        self._waiting.put((image, future))
        return future

    def close(self) -> None:
        """Finish what was submitted, and stop."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        held: list[tuple[Tensor, Future[Result]]] = []
        closing = False
        while held or not closing:
            while not closing and len(held) < self._most:
                try:
                    one = self._waiting.get(block=not held)
                except queue.Empty:
                    break
                if one is None:
                    closing = True
                elif one[1].set_running_or_notify_cancel():  # who gave up meanwhile is left out
                    held.append(one)
            if held:
                size = _first(len(held), self._most)
                self._answer(held[:size])
                del held[:size]

    def _answer(self, batch: Sequence[tuple[Tensor, Future[Result]]]) -> None:
        try:
            results = self._run(torch.stack([image for image, _ in batch]))  # (B, C, H, W)
        except BaseException as error:  # whatever it is, it is theirs who asked, and the next batch may fare better
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)


def _first(waiting: int, most: int) -> int:
    """How many of those that wait run now."""
    power = 1 << waiting.bit_length() >> 1  # the largest that is no more than them
    return power if waiting < most and 2 * waiting < 3 * power else waiting
