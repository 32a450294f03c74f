"""Numbers of a run as lines of JSON, which a resumed run continues where its checkpoint was."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.atomic import explained

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
"""What a run gave, the same for every run with its settings; and how long it took, which never is."""


class Log:
    """A file of lines; those that a step adds are held until ``flush``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length = 0
        """Bytes that are on the disk for certain."""
        self._waiting: list[str] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line, in memory; what is no finite number becomes null."""
        finite = {
            name: None if value != value or value in (math.inf, -math.inf) else value for name, value in line.items()
        }
        self._waiting.append(json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n")

    def flush(self) -> int:
        """Write what is waiting and have the disk hold it; returns the file's length in bytes.

        Raises:
            UserError: the disk is full, or the file cannot be written.
        """
        if not self._waiting and self.path.exists():
            return self.length
        with explained(self.path), self.path.open("r+b" if self.path.exists() else "x+b") as file:
            text = "".join(self._waiting).encode()
            file.seek(self.length)  # what an interrupted flush left is written over
            file.truncate()
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.length += len(text)
        self._waiting.clear()
        return self.length

    def go_back(self, length: int) -> bool:
        """Keep the first ``length`` bytes; false if there were fewer, all of which are kept.

        Raises:
            UserError: the file cannot be written.
        """
        with explained(self.path):
            here = self.path.stat().st_size if self.path.exists() else 0
            if here > length:
                os.truncate(self.path, length)
        self._waiting.clear()
        self.length = min(here, length)
        return here >= length
