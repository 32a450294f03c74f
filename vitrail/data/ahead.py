"""Work done by a few threads or processes a little ahead of whoever consumes it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from vitrail.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item],
    function: Callable[[Item], Result],
    depth: int,
    threads: int | None = None,
    workers: int = 0,
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` for each item, in order; at most ``depth`` of them, which may be endless, at a time.

    However the loop over this generator ends (a break, an exception, Ctrl-C), the threads or processes
    have ended when it has. What ``function`` raises is raised here.

    Args:
        threads: how many work at once; by default one for each processor this process may use, up to 8.
        workers: processes to work instead of threads, for work that holds Python's lock. They start anew
            (spawn), so ``function`` must be one that can be sent to them, and the main script must be importable.

    Raises:
        UserError: a process was killed.
    """
    remaining = iter(items)
    pool: Executor = (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (function,))
        if workers
        else ThreadPoolExecutor(threads or min(cores(), 8), thread_name_prefix="vitrail-read")
    )
    work: Callable[[Item], Result] = _work if workers else function
    waiting: deque[Future[Result]] = deque()
    try:
        while True:
            waiting.extend(pool.submit(work, item) for item in islice(remaining, depth - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "A process that prepares pictures was killed, perhaps for want of memory: run the same command again, "
            "with fewer workers or none."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], Any]


def _begin(function: Callable[[Any], Any]) -> None:
    """In a new process: take the function."""
    global _function
    _function = function
    end_with_parent()


def end_with_parent() -> None:
    """In a process that was started by another: leave Ctrl-C to it, and do not outlive it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _work(item: Any) -> Any:
    return _function(item)


def cores() -> int:
    """Of the processor, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
