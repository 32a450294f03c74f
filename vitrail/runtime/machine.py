"""What a measurement or a build was made on: they do not carry over to another."""

from __future__ import annotations

import ctypes
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
"""Of a processor, those that decide speed."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""glibc's names for what ``mallopt`` sets."""
LIBRARIES = ("torch", "openvino", "nncf", "onnxruntime")


def processor() -> str:
    """The processor's name, and which of ``FEATURES`` it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    return " ".join([fields.get("model name", platform.machine()), *(flag for flag in FEATURES if flag in flags)])


def keep_memory() -> None:
    """Have this process keep the memory that it frees, for its next tensors: on Linux with glibc, elsewhere nothing.

    Else every activation of 32 MiB and more is given back and asked for again, and the system clears its pages each
    time, which takes several times as long as what is computed there.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)


def versions() -> dict[str, str]:
    """Of the libraries that compute, those that are here."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
