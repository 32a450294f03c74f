"""Work done ahead, by processes: the same results in the same order, and an end however it comes."""

from __future__ import annotations

import os
import signal
import time

import pytest

from vitrail.data.ahead import ahead
from vitrail.errors import UserError


def work(item: int) -> int:
    """Squares; refuses 13; dies at 17, as for want of memory."""
    if item == 13:
        raise UserError("13 cannot be squared: choose another number.")
    if item == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def test_processes_give_what_threads_give_and_their_errors_arrive() -> None:
    assert list(ahead(range(12), work, 5, workers=2)) == list(ahead(range(12), work, 5))
    with pytest.raises(UserError, match="13 cannot be squared"):
        list(ahead(range(14), work, 5, workers=1))


def test_a_killed_process_is_a_sentence_and_not_a_hang() -> None:
    with pytest.raises(UserError, match="was killed, perhaps for want of memory: run the same command again"):
        list(ahead(range(14, 100), work, 5, workers=1))


def test_who_stops_listening_ends_the_processes() -> None:
    results = ahead(iter(int, 1), os_id, 3, workers=1)
    process = next(results)
    assert process != os.getpid()
    results.close()
    deadline = time.monotonic() + 20
    while alive(process) and time.monotonic() < deadline:
        os.sched_yield()
    assert not alive(process)


def os_id(item: int) -> int:
    """The process at work."""
    return os.getpid()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
