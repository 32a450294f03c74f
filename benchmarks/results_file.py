"""How a benchmark writes down what it found, and on what."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vitrail.report.markdown import write_section
from vitrail.runtime.machine import processor, versions

RESULTS = Path(__file__).parent / "results"
PERFORMANCE = Path(__file__).parents[1] / "docs" / "performance.md"
"""The page that speeds are told on."""

PEERS = ("timm", "transformers", "torchvision")
"""Whose versions stand in every result beside those of the libraries that Vitrail runs by."""

KINDS = {"amx": "With matrix units (AMX)", "avx512": "With AVX-512 alone", "other": "Others"}
"""What ``kind`` says, as a title."""


def record(name: str, findings: Any, limits: Mapping[str, float] | None = None) -> Path:
    """Write ``results/<name>.json``, where the name may have folders: the findings, the machine and its limits."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine(), **({"limits": dict(limits)} if limits else {}), "findings": findings}
    path.write_text(json.dumps(told, indent=2) + "\n")
    return path


def publish(part: str, text: str, *paths: Path) -> None:
    """Write a section of ``PERFORMANCE``, and below it what the results in ``paths`` were measured on."""
    found = [json.loads(path.read_text())["machine"] for path in paths]
    names = sorted({f"{one['processor']}, {one['cores']} cores" for one in found})
    write_section(PERFORMANCE, part, f"{text}\n\nMeasured on {'; '.join(names)}." if names else text)


def fallen(before: Mapping[str, float], now: Mapping[str, float], margin: float) -> list[str]:
    """Ratios that are lower than they were by more than ``margin``, in words; what is no longer measured is one."""
    return [
        f"{name}: {old:.2f} -> {f'{now[name]:.2f}' if name in now else 'not measured'}"
        for name, old in before.items()
        if now.get(name, 0.0) < old - margin
    ]


def kind() -> str:
    """Of this machine's processor, by its units for matrix products, which speeds of one are far from another's."""
    return "amx" if "amx_bf16" in processor() else "avx512" if "avx512f" in processor() else "other"


def machine() -> dict[str, Any]:
    """What a benchmark was run on."""
    found = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), **versions()}
    told = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no clone
        found["vitrail"] = subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()
    for name in PEERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
