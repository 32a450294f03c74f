"""What a measurement or a build was made on: they do not carry over to another."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
"""Of a processor, those that decide speed."""
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


def versions() -> dict[str, str]:
    """Of the libraries that compute, those that are here."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
