"""Fine-tuning in full, or the top layers: from a probe's head onwards, in the one loop."""

from __future__ import annotations

import copy
import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.config import Preprocessing, suggestion
from vitrail.data.batches import batches
from vitrail.data.order import steps_per_epoch
from vitrail.data.read import UnreadableImage, read_image
from vitrail.data.sources import Sample
from vitrail.errors import UserError
from vitrail.objectives.supervised import Supervised
from vitrail.record import from_dict, to_dict
from vitrail.report.board import tensorboard
from vitrail.report.terminal import Show, duration
from vitrail.runtime.forward import Runner
from vitrail.settings import Augmentation, FinetuneSettings, TrainSettings
from vitrail.train.loop import Step, train
from vitrail.train.state import State
from vitrail.train.trainable import train_only

SEEN = 50_000
"""Photos a run is to see, counting repetitions; few photos are seen more often, within ``EPOCHS``."""
EPOCHS = (10, 60)
COST = 3.5
"""How many times a forward pass an optimisation step takes."""
PATIENCE = 30 * 60
"""Seconds of training that ``auto`` takes upon itself."""
FEW = 20
"""Photos a class below which ``auto`` leaves the model as it is."""
LOOKS = 10
"""How often at most the held-out photos are looked at while training."""
TUNABLE = {"learning_rate", "weight_decay", "layer_decay", "warmup", "clip", "average", "accumulate"} | {
    entry.name for entry in dataclasses.fields(Augmentation)
}
"""Settings that ``tuning`` may change."""


def usual_epochs(photos: int) -> int:
    """How often to train on each of so many photos."""
    return min(max(round(SEEN / photos), EPOCHS[0]), EPOCHS[1])


def choose_method(settings: FinetuneSettings, photos: int, classes: int, images_per_second: float) -> tuple[str, str]:
    """The method to use, and the reason in a clause with the time it will take here.

    Args:
        images_per_second: measured speed of the forward pass.
    """
    epochs = settings.epochs or usual_epochs(photos)
    seconds = photos * epochs * COST / images_per_second
    work = f"{epochs} epochs of {photos} photos take about {duration(seconds)} here"
    if settings.method == "probe":
        return "probe", "a linear classifier on the features of the model, which stays as it is"
    if settings.method != "auto":
        return settings.method, work
    if photos < FEW * classes:
        return "probe", f"{photos / classes:.0f} photos a class are too few to train the model itself"
    if seconds > PATIENCE:
        return "probe", f"training the model itself would pay, but {work}; --method full does it"
    return "full", f"there are photos enough to train the model itself, and {work}"


def tune(usual: TrainSettings, tuning: Mapping[str, float]) -> tuple[TrainSettings, Augmentation]:
    """Settings with some fields changed.

    Raises:
        UserError: there is no such field, or a value has the wrong type.
    """
    fields = {cls: {entry.name for entry in dataclasses.fields(cls)} & TUNABLE for cls in (TrainSettings, Augmentation)}
    if unknown := set(tuning) - set().union(*fields.values()):
        name = sorted(unknown)[0]
        raise UserError(f"There is no setting {name!r}{suggestion(name, sorted(set().union(*fields.values())))}.")
    changed = [{name: value for name, value in tuning.items() if name in fields[cls]} for cls in fields]
    settings = from_dict(TrainSettings, {**to_dict(usual), **changed[0]}, "the tuning")
    return settings, from_dict(Augmentation, changed[1], "the tuning")


def lowest_trained(method: str, layers: int) -> int:
    """The depth from which up ``full`` or ``layers:K`` trains.

    Raises:
        UserError: there are fewer than K blocks.
    """
    if method == "full":
        return 0
    count = int(re.fullmatch(r"layers:(\d+)", method)[1])  # type: ignore[index]
    if count > layers:
        raise UserError(f"The model has {layers} layers, so {method} is too many: choose layers:{layers} or full.")
    return layers + 1 - count


@dataclass(frozen=True)
class Trained:
    """What training gave: the averaged weights, and a line for each epoch."""

    tensors: dict[str, Tensor]
    epochs: list[dict[str, Any]]
    images_per_second: float
    parameters: int
    """How many numbers were trained."""
    settings: TrainSettings
    augmentation: Augmentation


def train_classifier(
    show: Show,
    runner: Runner,
    how: Preprocessing,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    method: str,
    settings: FinetuneSettings,
) -> Trained:
    """Fine-tune the runner's model, which has its head, in place.

    The held-out photos are looked at for the curve alone: nothing is chosen by them.

    Args:
        held_out: photos whose accuracy is followed with the averaged weights.
        method: ``full`` or ``layers:K``.

    Raises:
        UserError: a photo that could be read no longer can, or the loss is no longer finite.
    """
    model = runner.model
    per_epoch = steps_per_epoch(len(samples), settings.batch_size)
    epochs = settings.epochs or usual_epochs(len(samples))
    usual = TrainSettings(epochs * per_epoch, settings.batch_size, seed=settings.seed, bf16=runner.bf16)
    train_settings, policy = tune(usual, settings.tuning)
    trained = train_only(model, model.depth, lowest_trained(method, model.config.encoder.layers))
    objective = Supervised(how, policy)
    state = State.start(model, objective.modules, train_settings, model.depth, top=model.config.encoder.layers + 1)
    labels = torch.tensor([sample.label for sample in samples])
    truth = np.array([sample.label for sample in held_out])
    shadow = Runner(copy.deepcopy(model), runner.device, runner.bf16)
    every = -(-epochs // LOOKS)
    lines: list[dict[str, Any]] = []
    losses, correct, seen = 0.0, 0.0, 0
    start = clock = time.perf_counter()
    evaluating = 0.0

    def view(sample: int, chance: np.random.Generator) -> Tensor:
        return objective.views(_read(samples[sample].path), chance)

    def follow(step: Step) -> None:
        nonlocal losses, correct, seen, clock, evaluating
        losses += step.loss * step.images
        correct += step.metrics["accuracy"] * step.images
        seen += step.images
        advance(step.done, losses / seen, correct / seen, seen / (time.perf_counter() - clock))
        if step.done % per_epoch:
            return
        line = {
            "epoch": step.epoch + 1,
            "step": step.done,
            "loss": losses / seen,
            "train_accuracy": correct / seen,
            "lr": step.learning_rate,
            "images_per_second": seen / (time.perf_counter() - clock),
        }
        if (step.epoch + 1) % every == 0 or step.epoch + 1 == epochs:
            pause = time.perf_counter()
            shadow.model.load_state_dict(state.averaged())
            logits = classify(shadow, how, held_out, settings.batch_size)
            line["val_accuracy"] = float((logits.argmax(axis=1) == truth).mean())
            evaluating += time.perf_counter() - pause
        lines.append(line)
        write(step.done, {name: value for name, value in line.items() if name not in ("epoch", "step")})
        losses, correct, seen = 0.0, 0.0, 0
        clock = time.perf_counter()

    board_folder = None if settings.tensorboard is None else Path(settings.tensorboard)
    with tensorboard(board_folder) as write, show.training(train_settings.steps) as advance:
        train(state, objective, view, labels, train_settings, runner.device, tell=follow)
    seconds = time.perf_counter() - start - evaluating
    return Trained(state.averaged(), lines, epochs * len(samples) / seconds, trained, train_settings, policy)


def classify(runner: Runner, how: Preprocessing, samples: Sequence[Sample], batch_size: int) -> np.ndarray:
    """Logits (n, classes) of photos.

    Raises:
        UserError: a photo cannot be read.
    """
    logits: list[np.ndarray] = []
    for batch in batches((sample.path for sample in samples), how, batch_size):
        if batch.failures:
            raise _no_longer(samples[batch.failures[0][0]].path, batch.failures[0][1])
        logits.append(runner.logits(batch.images)[1].numpy())
    return np.concatenate(logits)


def _read(path: Path) -> Image.Image:
    try:
        return read_image(path)
    except UnreadableImage as error:
        raise _no_longer(path, error.reason) from None


def _no_longer(path: Path, reason: str) -> UserError:
    return UserError(f"{path} could be read before and no longer can ({reason}): put it back, or start again.")
