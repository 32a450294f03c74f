"""Freed memory stays where it was asked to."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

KEPT = """
import sys
from vitrail.runtime.memory import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
import numpy as np
def pages():
    return int(open("/proc/self/statm").read().split()[1])
before = pages()
np.ones(2**25, np.uint8), np.ones(2**25, np.uint8)
print(pages() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told")
def test_freed_memory_stays_with_the_process_that_asked_for_it() -> None:
    left = {}
    for what in ("kept", "given back"):
        run = subprocess.run([sys.executable, "-c", KEPT, what], capture_output=True, text=True, check=True)
        left[what] = int(run.stdout) * 4096
    assert left["kept"] >= 2**25
    assert left["given back"] < 2**25
