"""Ctrl-C held back, and let through."""

from __future__ import annotations

import signal
import threading

import pytest

from vitrail.train.interrupts import held


def test_the_block_ends_before_the_interrupt_is_raised() -> None:
    done = []

    def work() -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_and_ignored_interrupts_pass() -> None:
    done = []

    def work() -> None:
        with held():
            done.append("there")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held():
            signal.raise_signal(signal.SIGINT)
            done.append("here")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["there", "here"]
