"""How a benchmark writes down what it found, and on what."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def record(name: str, findings: Any) -> Path:
    """Write ``results/<name>.json``, where the name may have folders: the findings and their machine."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "findings": findings}, indent=2) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What a benchmark was run on."""
    return {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}


def _processor() -> str:
    """The processor's name, and which of the features that decide speed it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = [
        flag
        for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
        if flag in fields.get("flags", "").split()
    ]
    return " ".join([fields.get("model name", platform.machine()), *flags])
