"""Pictures that a random model tells apart: one colour a class, with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.config import EncoderConfig, ModelCard, Preprocessing, ViTConfig
from vitrail.model.build import build
from vitrail.weights.store import write_model

COLOURS = {"blue": (40, 60, 220), "green": (30, 200, 60), "red": (220, 40, 40)}


def paint(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 36)) -> None:
    """A noisy picture of one colour, width x height."""
    noise = np.random.default_rng(seed).normal(0, 25, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/{train,val}/<colour>/n.png, 8 and 4 a class."""
    folder = tmp_path_factory.mktemp("photos")
    for label, (name, colour) in enumerate(COLOURS.items()):
        for number in range(12):
            part = "train" if number < 8 else "val"
            paint(folder / part / name / f"{number}.png", colour, seed=100 * label + number)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of three narrow layers, 32 pixels, random: training it takes no time."""
    config = ViTConfig(EncoderConfig(3, 24, 3, 48), (16, 16), (32, 32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build(config)
    folder = tmp_path_factory.mktemp("weights") / "small"
    write_model(folder, ModelCard(config, Preprocessing((32, 32))), model.state_dict())
    return folder
