"""Pictures that any model tells apart, to learn from in seconds: dark ones and light ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_shades(folder: Path, each: int, side: int = 16) -> Path:
    """``each`` noisy pictures of ``dark/`` and of ``light/``, ``side`` pixels a side; returns the folder."""
    chance = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = chance.integers(0, 100, (side, side, 3)) + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02}.png")
    return folder
