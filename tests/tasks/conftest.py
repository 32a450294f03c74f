"""Pictures that a random model tells apart: one colour a class, with noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from tests.tasks.interrupted import HOW, TUNING, Killed
from tests.tasks.pretraining import ALL_ON, Stop, run
from vitrail.config import EncoderConfig, ModelCard, Preprocessing, ViTConfig
from vitrail.model.build import build
from vitrail.report.terminal import Show
from vitrail.tasks import pretrain_job
from vitrail.tasks.finetune import Finetuned
from vitrail.train import loop
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


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretraining without the plan's measurement, which would be most of the work."""
    monkeypatch.setattr(pretrain_job, "seconds_per_step", lambda *_: 0.01)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """What to stop pretraining with."""

    def at(step: int, error: type[BaseException]) -> None:
        @contextmanager
        def training(self: Show, steps: int, done: int = 0) -> Iterator[Callable[..., None]]:
            def advance(made: int, *_: Any) -> None:
                if made == step:
                    raise error

            yield advance

        monkeypatch.setattr(Show, "training", training)

    return at


@pytest.fixture(scope="session")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted pretraining runs with everything on, by objective."""
    folder = tmp_path_factory.mktemp("whole")
    for objective, tuning in ALL_ON.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pretrain_job, "seconds_per_step", lambda *_: 0.01)
            run(photos, folder / objective, objective, tuning=tuning)
    return {objective: folder / objective for objective in ALL_ON}


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


@pytest.fixture
def go(photos: Path, weights: Path) -> Any:
    """Fine-tune in some folder."""

    def run(out: Path, **options: Any) -> Finetuned:
        return vitrail.finetune(photos, out, weights=weights, **{**HOW, "tuning": TUNING, **options})

    return run


@pytest.fixture(scope="session")
def intact(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    """The intact run."""
    out = tmp_path_factory.mktemp("intact") / "run"
    return vitrail.finetune(photos, out, weights=weights, tuning=TUNING, **HOW)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Raise an error after a step, once."""

    def at(step: int, error: type[BaseException]) -> None:
        original = loop._settle

        def settle(state: Any, *rest: Any) -> None:
            if state.step == step:
                monkeypatch.setattr(loop, "_settle", original)
                raise error
            original(state, *rest)

        monkeypatch.setattr(loop, "_settle", settle)

    return at


@pytest.fixture
def begun(go: Any, stop_after: Any, tmp_path: Path) -> Path:
    """A run stopped after a checkpoint at step 4."""
    stop_after(5, Killed)
    with pytest.raises(Killed):
        go(tmp_path / "begun")
    return tmp_path / "begun"
