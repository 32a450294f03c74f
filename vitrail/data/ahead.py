"""Work done by a few threads a little ahead of whoever consumes it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item], function: Callable[[Item], Result], depth: int, threads: int | None = None
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` for each item, in order; at most ``depth`` of them, which may be endless, at a time.

    However the loop over this generator ends (a break, an exception, Ctrl-C), the threads have ended
    when it has. What ``function`` raises is raised here.

    Args:
        threads: how many work at once; by default one for each processor this process may use, up to 8.
    """
    remaining = iter(items)
    pool = ThreadPoolExecutor(threads or min(_processors(), 8), thread_name_prefix="vitrail-read")
    waiting: deque[Future[Result]] = deque()
    try:
        while True:
            waiting.extend(pool.submit(function, item) for item in islice(remaining, depth - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
