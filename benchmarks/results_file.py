"""How a benchmark writes down what it found, and on what."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from vitrail.runtime.machine import processor, versions

RESULTS = Path(__file__).parent / "results"
PERFORMANCE = Path(__file__).parents[1] / "docs" / "performance.md"
"""The page that speeds are told on."""


def record(name: str, findings: Any) -> Path:
    """Write ``results/<name>.json``, where the name may have folders: the findings and their machine."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "findings": findings}, indent=2) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What a benchmark was run on."""
    return {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), **versions()}
