"""A small run with everything switched on, that can be stopped anywhere and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitrail.config import EncoderConfig, HeadConfig, Preprocessing, ViTConfig
from vitrail.model.build import build
from vitrail.objectives.objective import Objective
from vitrail.objectives.supervised import Supervised
from vitrail.settings import Augmentation, TrainSettings
from vitrail.train.loop import Evaluate, Step, train
from vitrail.train.state import State

CONFIG = ViTConfig(
    EncoderConfig(3, 24, 3, 48, dropout=0.1, drop_path=0.2, layer_scale=1e-2),
    (8, 8),
    (16, 16),
    head=HeadConfig(("class", "mean"), 2, classes=3),
)
STILL = replace(CONFIG, encoder=replace(CONFIG.encoder, dropout=0.0, drop_path=0.0))
PHOTOS = [
    Image.fromarray(np.random.default_rng(i).integers(0, 60, (20, 20, 3), dtype=np.uint8) + np.uint8(60 * (i % 3)))
    for i in range(21)
]
LABELS = torch.arange(21) % 3
ALL_ON = TrainSettings(
    8, 8, accumulate=2, learning_rate=3e-3, clip=0.5, average=0.3, checkpoint_every=3, evaluate_every=2
)
"""Three steps an epoch, so that steps 3 and 6 end one."""


class Killed(BaseException):
    """What SIGKILL is to a test: nothing may be saved because of it."""


class Modular(Supervised):
    """Labels, learnt with a module of its own that has a batch norm's statistics and follows the model."""

    def __init__(self, policy: Augmentation | None = None) -> None:
        super().__init__(Preprocessing((16, 16)), policy or Augmentation(mixing=0.8))
        torch.manual_seed(5)
        self.modules["norm"] = nn.BatchNorm1d(3)
        self.modules["follower"] = nn.Linear(3, 3).requires_grad_(False)

    def loss(self, model: nn.Module, views: Tensor, labels: Tensor, chances: Any) -> tuple[Tensor, dict[str, float]]:
        """Logits pass the module."""
        return super().loss(lambda images: self.modules["norm"](model(images)), views, labels, chances)  # type: ignore[arg-type]

    def after_step(self, model: nn.Module, progress: float) -> None:
        """The follower takes a part of the classifier in."""
        with torch.no_grad():
            self.modules["follower"].weight.lerp_(model.classifier.weight[:, :3], 0.1 * progress)  # type: ignore


@dataclass(frozen=True)
class View:
    """A photo's view; can be sent to another process."""

    policy: Augmentation = field(default_factory=Augmentation)

    def __call__(self, sample: int, chance: np.random.Generator) -> Tensor:
        """(3, 16, 16)."""
        return Supervised(Preprocessing((16, 16)), self.policy).views(PHOTOS[sample], chance)


def begin(settings: TrainSettings, objective: Objective[Any], config: ViTConfig = CONFIG) -> State:
    """A model with fixed first weights."""
    torch.manual_seed(3)
    return State.start(build(config), objective.modules, settings, lambda name: 4, 4)


def score(state: State) -> tuple[float, dict[str, float]]:
    """A number of the averaged weights that goes up and down."""
    value = float(np.cos(1e3 * float(state.averaged()["classifier.weight"].norm())))
    return value, {"norm": float(state.averaged()["norm.weight"].norm())}


def run(
    settings: TrainSettings,
    folder: Path | None = None,
    tell: Callable[[Step], None] = lambda step: None,
    *,
    objective: Objective[Any] | None = None,
    evaluate: Evaluate | None = score,
    about: dict[str, Any] | None = None,
    policy: Augmentation | None = None,
    config: ViTConfig = CONFIG,
    warnings: list[str] | None = None,
) -> State:
    """Train from the start or from what the folder has; returns the state at the end."""
    objective = objective or Modular()
    state = begin(settings, objective, config)
    train(
        state,
        objective,
        View(policy or Augmentation()),
        LABELS,
        settings,
        torch.device("cpu"),
        folder=folder,
        about=about,
        evaluate=evaluate,
        tell=tell,
        warn=(warnings if warnings is not None else []).append,
    )
    return state


def stop_at(step: int, error: type[BaseException] = Killed) -> Callable[[Step], None]:
    """What to tell steps to, to be stopped after one."""

    def tell(made: Step) -> None:
        if made.done == step:
            raise error

    return tell


def same(one: State, other: State) -> None:
    """All tensors and facts are equal to the bit."""
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.stride() == second[name].stride(), name
        assert torch.equal(tensor, second[name]), name
    assert one.facts() == other.facts()
    assert one.step == other.step
