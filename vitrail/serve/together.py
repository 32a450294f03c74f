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
        while True:
            taken = [self._waiting.get()]
            while len(taken) < self._most and taken[-1] is not None:
                try:
                    taken.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            batch = [one for one in taken if one is not None]
            # Who gave up waiting meanwhile is left out, and the others can no longer give up.
            if batch := [one for one in batch if one[1].set_running_or_notify_cancel()]:
                self._answer(batch)
            if taken[-1] is None:
                return

    def _answer(self, batch: Sequence[tuple[Tensor, Future[Result]]]) -> None:
        try:
            results = self._run(torch.stack([image for image, _ in batch]))  # (B, C, H, W)
        except BaseException as error:  # whatever it is, it is theirs who asked, and the next batch may fare better
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
