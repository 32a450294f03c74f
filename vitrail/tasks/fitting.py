"""A classifier trained on photos: from its head onwards, in the one loop, in a folder that it can go on from."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.config import Preprocessing
from vitrail.data.batches import batches
from vitrail.data.held import Pictures, enough, hold
from vitrail.data.order import batch_at, steps_per_epoch
from vitrail.data.sources import Sample
from vitrail.data.views import Views
from vitrail.errors import UserError
from vitrail.model.compiling import compile_blocks
from vitrail.model.lora import merge
from vitrail.model.vision import VisionTransformer
from vitrail.objectives.supervised import Supervised
from vitrail.report.board import tensorboard
from vitrail.report.terminal import Show
from vitrail.runtime.predictor import Predictor
from vitrail.tasks.training import Course
from vitrail.train import checkpoint
from vitrail.train.log import METRICS, TIMING
from vitrail.train.loop import Step, train
from vitrail.train.run import CHECKPOINTS
from vitrail.train.state import State

MEMORY = 2e9
"""Bytes that decoded photos may take; where they would take more, they are read again each time: the same result."""


@dataclass(frozen=True)
class Trained:
    """What training gave."""

    tensors: dict[str, Tensor]
    """The model's state dict: averaged weights, low-rank matrices merged."""
    adapted: VisionTransformer | None
    """The same model with its low-rank matrices apart, for LoRA."""
    epochs: list[dict[str, Any]]
    """A line of numbers for each: what can be repeated, and ``images_per_second``, which cannot."""
    earlier: float
    """Seconds of the steps that earlier processes took."""
    images_per_second: float
    """While training, evaluations left out."""
    parameters: int
    """How many numbers were trained."""
    course: Course


def train_classifier(
    show: Show,
    predictor: Predictor,
    how: Preprocessing,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    course: Course,
    folder: Path,
    about: Mapping[str, Any],
    board: Path | None = None,
) -> Trained:
    """Train a model that has a classifier, in place, from the last checkpoint in ``folder`` if there is one.

    The held-out photos are looked at for the curve alone, and nothing is chosen by them, but with ``patience``:
    then they say when to stop, and the weights are those of the best look.

    Args:
        held_out: photos whose accuracy is followed with the averaged weights.
        about: what determines the result besides the course and the labels, as plain JSON values.
        board: a folder for TensorBoard's curves.

    Raises:
        UserError: a photo that could be read no longer can, the loss is lost, the folder is in use or of
            another run, or the disk is full.
    """
    model, settings = predictor.model, course.settings
    objective = Supervised(how, course.augmentation)
    trained = course.trainable(model)
    show.say(
        f"Training {trained:,} of {sum(parameter.numel() for parameter in model.parameters()):,} numbers; "
        f"what it needs to go on after an interruption is kept in {folder}."
    )
    state = State.start(model, objective.modules, settings, model.depth, top=model.config.layers + 1)
    labels = torch.tensor([sample.label for sample in samples])
    truth = np.array([sample.label for sample in held_out])
    if settings.compile:
        compile_blocks(model)
    shadow = Predictor(copy.deepcopy(model), predictor.device, predictor.bf16)
    per_epoch = steps_per_epoch(len(samples), settings.batch_size)
    looks: dict[int, float] = {}

    def look(now: State) -> tuple[float, dict[str, float]]:
        shadow.model.load_state_dict(now.averaged())
        right = classify(shadow, how, held_out, settings.batch_size).argmax(axis=1) == truth
        looks[now.step] = float(right.mean())
        return looks[now.step], {}

    with tensorboard(board) as write, show.training(settings.steps) as advance:
        sums, first = _Sums(), settings.steps + 1

        def follow(step: Step) -> None:
            nonlocal sums, first
            first = min(first, step.done)
            sums.take(step)
            advance(step.done, sums.loss, sums.accuracy, sums.rate)
            if step.done % per_epoch == 0:
                numbers = {"loss": sums.loss, "train_accuracy": sums.accuracy, "lr": step.learning_rate}
                seen = {"val_accuracy": looks[step.done]} if step.done in looks else {}
                write(step.done, {**numbers, "images_per_second": sums.rate, **seen})
                sums = _Sums()

        train(
            state,
            objective,
            Views(held(show, samples, how, course), how, course.augmentation),
            labels,
            settings,
            predictor.device,
            folder=folder,
            about=about,
            evaluate=look,
            tell=follow,
            warn=show.warn,
        )
    if settings.patience:
        _to_best(state, folder, show)
    model.load_state_dict(state.averaged())
    adapted = None
    if course.lora is not None:
        assert isinstance(model, VisionTransformer)
        adapted = copy.deepcopy(model)
        merge(model)
    logged = _Logged.read(folder, course, len(samples))
    return Trained(
        tensors=model.state_dict(),
        adapted=adapted,
        epochs=logged.epochs(),
        earlier=sum(seconds for step, seconds in logged.seconds.items() if step < first),
        images_per_second=logged.rate(logged.steps) or 0.0,
        parameters=trained,
        course=course,
    )


def held(show: Show, samples: Sequence[Sample], how: Preprocessing, course: Course) -> Pictures:
    """The photos, decoded once where memory allows it.

    Raises:
        UserError: one can no longer be read.
    """
    found = photos(samples, how, course)
    with show.progress("Reading photos") as advance:
        found, failed = hold(found, MEMORY / (1 + course.settings.workers), advance, known={})
    for path, reason in failed.items():
        raise _no_longer(path, reason)
    return found


def photos(samples: Sequence[Sample], how: Preprocessing, course: Course) -> Pictures:
    """The photos as training sees them: no larger than any crop needs."""
    return Pictures([sample.path for sample in samples], enough(how.size, course.augmentation.smallest_crop))


def classify(predictor: Predictor, how: Preprocessing, samples: Sequence[Sample], batch_size: int) -> np.ndarray:
    """Logits (n, classes) of photos.

    Raises:
        UserError: a photo cannot be read.
    """
    logits: list[np.ndarray] = []
    for batch in batches((sample.path for sample in samples), how, batch_size):
        if batch.failures:
            raise _no_longer(samples[batch.failures[0][0]].path, batch.failures[0][1])
        logits.append(predictor.logits(batch.images)[1].numpy())
    return np.concatenate(logits)


class _Sums:
    """Running means of an epoch, or of what this process saw of it."""

    def __init__(self) -> None:
        self.losses, self.correct, self.seen = 0.0, 0.0, 0
        self.clock = time.perf_counter()

    def take(self, step: Step) -> None:
        self.losses += step.loss * step.images
        self.correct += step.metrics["accuracy"] * step.images
        self.seen += step.images

    @property
    def loss(self) -> float:
        return self.losses / self.seen

    @property
    def accuracy(self) -> float:
        return self.correct / self.seen

    @property
    def rate(self) -> float:
        return self.seen / (time.perf_counter() - self.clock)


def _to_best(state: State, folder: Path, show: Show) -> None:
    """The weights of the best evaluation."""
    best = state.decisions.best_step
    if state.decisions.best is None or best == state.step:
        return
    try:
        found = checkpoint.read(checkpoint.place(folder / CHECKPOINTS, best))
    except checkpoint.Damaged as error:
        show.warn(f"{str(error).rstrip('.')}; so the last weights are taken, not the best.")
        return
    state.restore(found.step, found.tensors, found.facts)


@dataclass(frozen=True)
class _Logged:
    """What the logs say of a run, by step; where it went back, the later lines of a step count."""

    steps: dict[int, dict[str, Any]]
    looks: dict[int, float]
    seconds: dict[int, float]
    images: dict[int, int]

    @classmethod
    def read(cls, folder: Path, course: Course, samples: int) -> _Logged:
        settings, lines = course.settings, _lines(folder / METRICS)
        steps = {line["step"]: line for line in lines if "loss" in line}
        return cls(
            steps,
            {line["step"]: line["score"] for line in lines if "score" in line},
            {line["step"]: line["seconds"] for line in _lines(folder / TIMING) if "seconds" in line},
            {
                step: len(batch_at(step - 1, samples, settings.batch_size, settings.seed, settings.repeats)[1])
                for step in steps
            },
        )

    def epochs(self) -> list[dict[str, Any]]:
        """Means of each epoch."""
        found = []
        for epoch in sorted({line["epoch"] for line in self.steps.values()}):
            own = sorted(step for step, line in self.steps.items() if line["epoch"] == epoch)
            count = sum(self.images[step] for step in own)
            line = {
                "epoch": epoch + 1,
                "step": own[-1],
                "loss": sum(self.steps[step]["loss"] * self.images[step] for step in own) / count,
                "train_accuracy": sum(self.steps[step]["accuracy"] * self.images[step] for step in own) / count,
                "lr": self.steps[own[-1]]["learning_rate"],
                "images_per_second": self.rate(own),
            }
            if seen := [self.looks[step] for step in own if step in self.looks]:
                line["val_accuracy"] = seen[-1]
            found.append(line)
        return found

    def rate(self, steps: Iterable[int]) -> float | None:
        """Images a second in those steps whose time is known."""
        timed = [step for step in steps if step in self.seconds]
        seconds = sum(self.seconds[step] for step in timed)
        return sum(self.images[step] for step in timed) / seconds if seconds > 0 else None


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _no_longer(path: Path, reason: str) -> UserError:
    return UserError(f"{path} could be read before and no longer can ({reason}): put it back, or start again.")
