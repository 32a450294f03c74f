"""Pictures to experiment on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and light: 20 to learn from and 10 to be judged by."""
    folder = tmp_path_factory.mktemp("data") / "shades"
    chance = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 10)):
        for label, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 100, (16, 16, 3)) + 120 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder
