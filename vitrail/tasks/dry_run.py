"""What a fine-tuning run would do, take and need, with nothing written: measured where it can be."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.cache import cache_dir
from vitrail.cost import inference_bytes, training_bytes, weight_bytes
from vitrail.data.order import steps_per_epoch
from vitrail.data.read import UnreadableImage, read_image
from vitrail.data.sources import Dataset, Sample
from vitrail.data.views import Views
from vitrail.errors import UserError
from vitrail.evaluate.probe import Probe
from vitrail.model.compiling import compile_blocks
from vitrail.objectives.supervised import Supervised
from vitrail.report.accounts import show_accounts
from vitrail.report.terminal import Show, duration
from vitrail.settings import FinetuneSettings
from vitrail.tasks.classifier import Classifier
from vitrail.tasks.features import FeatureCache, cache_folder, content_hashes, measured_speed
from vitrail.tasks.finetune import opened
from vitrail.tasks.fitting import photos
from vitrail.tasks.preparation import pooling_of, show_photos, with_head
from vitrail.tasks.training import UNTRAINED, Course, choose_method, course, lowest_trained
from vitrail.train.loop import Step, train
from vitrail.train.profile import STEPS as PROFILED
from vitrail.train.profile import Profiler
from vitrail.train.state import State

STEPS = 3
"""Optimisation steps taken to see how long one takes; the first, a warm-up, does not count."""


@dataclass(frozen=True)
class Plan:
    """A run before it is begun. Times are seconds on this machine."""

    method: str
    why: str
    train: int
    held_out: int
    """Photos."""
    images_per_second: float
    """Measured: read and run through the model."""
    feature_seconds: float
    """For the photos whose features are not in the cache."""
    epochs: int | None
    steps: int | None
    """Those of training; None where nothing is trained, as in all that follows but memory."""
    trained_parameters: int | None
    training_images_per_second: float | None
    """Measured, in optimisation steps."""
    training_seconds: float | None
    """With the looks at the held-out photos."""
    memory_bytes: int
    """Estimated: weights, what is learned with and activations, beside what Python and its libraries take."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """One line."""
        seconds = self.feature_seconds + (self.training_seconds or 0.0)
        return f"{self.method}: about {duration(seconds)} and {self.memory_bytes / 2**20:,.0f} MiB."


def plan(settings: FinetuneSettings, quiet: bool = False, profile: Path | None = None) -> Plan:
    """Read the data and the weights, measure this machine, and say what the run would do.

    Nothing is written but what is downloaded, which goes to the cache, and the trace.

    Args:
        profile: a file for a trace of some training steps; where their time goes is said too.

    Raises:
        UserError: as of the run itself; or a run without training is to be profiled.
    """
    show = Show(quiet)
    dataset, classifier = opened(settings, show)
    show_photos(show, dataset, classifier)
    predictor, how, config = classifier.predictor, classifier.card.preprocessing, classifier.card.architecture
    samples = [*dataset.train, *dataset.val]
    pooling = pooling_of(classifier)
    cache = FeatureCache(cache_folder(cache_dir() / "features", predictor, how, pooling))
    digests = content_hashes(sample.path for sample in samples)
    missing = len({digest for digest in digests if isinstance(digest, str)} - set(cache.places))
    speed = measured_speed(predictor, how, [sample.path for sample in samples], settings.batch_size)
    method, why = choose_method(settings, len(dataset.train), len(dataset.classes), speed)
    number = 2 if predictor.bf16 else 4
    numbers = pooling.layers * len(pooling.parts) * config.width
    found = Plan(
        method=method,
        why=why,
        train=len(dataset.train),
        held_out=len(dataset.val),
        images_per_second=speed,
        feature_seconds=missing / speed,
        epochs=None,
        steps=None,
        trained_parameters=None,
        training_images_per_second=None,
        training_seconds=None,
        memory_bytes=weight_bytes(config)
        + inference_bytes(config, number) * settings.batch_size
        + 4 * len(samples) * numbers,
    )
    if method not in UNTRAINED:
        found = _with_training(found, settings, dataset, classifier, show, profile)
    elif profile is not None:
        raise UserError(f"The method is {method}, which trains in no steps: profile --method full or lora.")
    _tell(show, found)
    show.say(
        "Nothing was written; without --dry-run the run begins."
        if profile is None
        else "Nothing but the trace was written; without --profile the run begins."
    )
    return found


def _with_training(
    found: Plan, settings: FinetuneSettings, dataset: Dataset, classifier: Classifier, show: Show, trace: Path | None
) -> Plan:
    """Take some steps in memory, from a head of zeros."""
    way = course(settings, found.method, found.train, classifier.predictor.bf16)
    pooling, width = pooling_of(classifier), classifier.card.architecture.width
    classes = len(dataset.classes)
    empty = Probe(pooling.parts[:1], 1, 0.0, np.zeros((classes, width)), np.zeros(classes), (), None)
    headed = Classifier(with_head(classifier, empty, dataset), settings.device)
    parameters = way.trainable(headed.model)
    samples = _readable(dataset.train, way.settings.batch_size)
    speed = _training_speed(way, headed, samples)
    if trace is not None:
        profiler = Profiler(headed.predictor.device, way.settings.bf16)
        with profiler as follow:
            _take(way, headed, samples, PROFILED, follow)
        profiler.write(trace)
        show_accounts(show, profiler.accounts(), trace)
    looks = -(-way.settings.steps // way.settings.evaluate_every) if way.settings.evaluate_every else 1
    return replace(
        found,
        epochs=way.settings.steps // steps_per_epoch(found.train, way.settings.batch_size),
        steps=way.settings.steps,
        trained_parameters=parameters,
        training_images_per_second=speed,
        training_seconds=way.settings.steps * way.settings.batch_size / speed
        + looks * found.held_out / found.images_per_second,
        memory_bytes=max(found.memory_bytes, _training_memory(way, headed, parameters)),
    )


def _training_memory(way: Course, classifier: Classifier, parameters: int) -> int:
    """Weights and a copy of them for evaluation; gradients, moments and averages; activations of a piece."""
    config, settings = classifier.card.architecture, way.settings
    kept = 1 + (2 if settings.optimizer == "adamw" else 1) + (1 if settings.average else 0)
    layers = config.layers
    below = max(lowest_trained(way.method, layers) - 1, 0)  # blocks that are not trained keep nothing
    # Under autocast too, the sums between blocks, norms and what they keep stay in float32.
    activations = training_bytes(config) * (layers - below) // layers
    images = -(-settings.batch_size // settings.accumulate)
    return 2 * weight_bytes(config) + 4 * kept * parameters + activations * images


def _training_speed(way: Course, classifier: Classifier, samples: Sequence[Sample]) -> float:
    """Images a second in optimisation steps on a batch of photos."""
    ends = list[tuple[float, int]]()

    def tell(step: Step) -> None:
        ends.append((time.perf_counter(), step.images))

    _take(way, classifier, samples, STEPS, tell)
    return sum(images for _, images in ends[1:]) / (ends[-1][0] - ends[0][0])


def _take(
    way: Course, classifier: Classifier, samples: Sequence[Sample], steps: int, tell: Callable[[Step], None]
) -> None:
    """Some optimisation steps."""
    model = classifier.model
    settings = replace(
        way.settings,
        steps=steps,
        batch_size=min(way.settings.batch_size, len(samples)),
        evaluate_every=0,
        patience=0,
        on_spike="stop",
        warmup=0,
    )
    if settings.compile:
        compile_blocks(model)
    how = classifier.card.preprocessing
    objective = Supervised(how, way.augmentation)
    state = State.start(model, objective.modules, settings, model.depth, top=model.config.layers + 1)
    labels = torch.tensor([sample.label for sample in samples])
    view = Views(photos(samples, how, way), how, way.augmentation)
    train(state, objective, view, labels, settings, classifier.predictor.device, tell=tell)


def _readable(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Some photos of all classes that can be read.

    Raises:
        UserError: none can.
    """
    found: list[Sample] = []
    for sample in random.Random(0).sample(samples, len(samples)):
        try:
            read_image(sample.path)
        except UnreadableImage:
            continue
        found.append(sample)
        if len(found) == count:
            break
    if not found:
        raise UserError("None of the training pictures can be read: mend them first.")
    return found


def _tell(show: Show, found: Plan) -> None:
    facts = [
        ("method", f"{found.method}: {found.why}"),
        ("features", f"{duration(found.feature_seconds)} at {found.images_per_second:.1f} images a second, measured"),
    ]
    if found.training_seconds is not None and found.training_images_per_second is not None:
        steps = f"{found.steps:,} steps ({found.epochs} epochs) of {found.trained_parameters:,} numbers"
        speed = (
            f"{duration(found.training_seconds)} at {found.training_images_per_second:.1f} images a second, measured"
        )
        facts.append(("training", f"{steps}: {speed}"))
    facts.append(("memory", f"about {found.memory_bytes / 2**20:,.0f} MiB, beside Python's own"))
    show.facts(facts)
