"""A small model that is served, and pictures in several formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serve.serving import Served, serving, toy
from vitrail.tasks.classifier import Classifier


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return toy()


@pytest.fixture(scope="module")
def served(classifier: Classifier) -> Iterator[Served]:
    with serving(classifier) as one:
        yield one


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for number, ending in enumerate(("jpg", "png", "webp", "tif", "bmp", "gif")):
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 50, 3)).astype(np.uint8)
        paths.append(folder / f"photo {number}.{ending}")
        Image.fromarray(pixels).save(paths[-1])
    return paths
