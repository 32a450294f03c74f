"""How a model is fine-tuned: which method, what of the model learns, how long and with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.config import Architecture, ViTConfig
from vitrail.data.order import steps_per_epoch
from vitrail.data.views import Policy
from vitrail.errors import UserError
from vitrail.model.build import Model
from vitrail.model.lora import add_lora
from vitrail.model.vision import VisionTransformer
from vitrail.record import changed
from vitrail.report.terminal import duration
from vitrail.settings import RANK, Augmentation, FinetuneSettings, Lora, TrainSettings
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
LORA_RATE = 5e-4
"""Learning rate of LoRA, whose few numbers start at nothing; the paper's for RoBERTa base (2106.09685, table 9)."""
UNTRAINED = ("probe", "knn")
"""Methods that leave the model as it is."""
FIXED = {"steps", "batch_size", "seed", "bf16"}
"""Fields of ``TrainSettings`` that follow from the data, from other options or from the machine."""


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
    if settings.method == "knn":
        return "knn", "the training photos whose features are nearest vote; nothing is trained"
    if settings.method == "lora":
        return f"lora:{RANK}", work
    if settings.method != "auto":
        return settings.method, work
    if settings.weights == "none":
        return "full", f"random weights have no features to be probed, and {work}"
    if photos < FEW * classes:
        return "probe", f"{photos / classes:.0f} photos a class are too few to train the model itself"
    if seconds > PATIENCE:
        return "probe", f"training the model itself would pay, but {work}; --method full does it"
    return "full", f"there are photos enough to train the model itself, and {work}"


NO_LORA = "LoRA adapts attention, which a CNN has not: choose full, layers:K, probe or knn."


@dataclass(frozen=True)
class Course:
    """How a training method goes about it."""

    method: str
    """``full``, ``layers:K`` or ``lora:R``."""
    settings: TrainSettings
    augmentation: Augmentation
    lora: Lora | None
    """For ``lora:R`` alone."""

    def trainable(self, model: Model) -> int:
        """Leave to learn what the method trains, with low-rank matrices put in for LoRA; returns how many numbers.

        Raises:
            UserError: the model has fewer than K blocks, or no attention for LoRA to adapt.
        """
        if self.lora is None:
            return train_only(model, model.depth, lowest_trained(self.method, model.config.layers))
        if not isinstance(model, VisionTransformer):
            raise UserError(NO_LORA)
        add_lora(model, self.lora.of_rank(int(self.method.partition(":")[2])), self.settings.seed)
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def course(settings: FinetuneSettings, method: str, photos: int, bf16: bool) -> Course:
    """The usual course of a method for so many photos, with what was asked to be otherwise.

    Raises:
        UserError: a setting is unknown or cannot be meant.
    """
    epochs = settings.epochs or usual_epochs(photos)
    per_epoch = steps_per_epoch(photos, settings.batch_size)
    lora = method.startswith("lora")
    usual = TrainSettings(
        epochs * per_epoch,
        settings.batch_size,
        learning_rate=LORA_RATE if lora else TrainSettings.learning_rate,
        layer_decay=1.0 if lora else TrainSettings.layer_decay,
        evaluate_every=-(-epochs // LOOKS) * per_epoch,
        checkpoint_every=per_epoch if settings.tuning.get("on_spike") == "rollback" else 0,
        seed=settings.seed,
        bf16=bf16,
    )
    tuned, augmentation, low_rank = tune(usual, settings.tuning)
    return Course(method, tuned, augmentation, low_rank if lora else None)


def tune(usual: TrainSettings, tuning: Mapping[str, Any]) -> tuple[TrainSettings, Augmentation, Lora]:
    """Settings with some fields changed.

    Raises:
        UserError: there is no such field, or a value has the wrong type.
    """
    if fixed := set(tuning) & FIXED:
        raise UserError(
            f"{min(fixed)} is not among the settings of --set: it follows from --epochs, --batch-size, --seed, the "
            "photos and this machine."
        )
    settings, augmentation, lora = changed([usual, Augmentation(), Lora()], tuning)
    return settings, augmentation, lora


def check_method(method: str, augmentation: Augmentation, config: Architecture) -> None:
    """Raise UserError for what a model cannot be asked to do, before any work is done."""
    lowest_trained(method, config.layers)
    if method.startswith("lora") and not isinstance(config, ViTConfig):
        raise UserError(NO_LORA)
    check_views(augmentation, config)


def check_views(policy: Policy, config: Architecture) -> None:
    """Raise UserError where patches are to be dropped of a model that has none."""
    if isinstance(policy, Augmentation) and policy.drop_patches and not isinstance(config, ViTConfig):
        raise UserError("Only a Vision Transformer has patches to leave out: set drop_patches to 0.")


def lowest_trained(method: str, layers: int) -> int:
    """The depth from which up ``full`` or ``layers:K`` trains.

    Raises:
        UserError: there are fewer than K blocks.
    """
    if not method.startswith("layers:"):
        return 0
    count = int(method.partition(":")[2])
    if count > layers:
        raise UserError(f"The model has {layers} layers, so {method} is too many: choose layers:{layers} or full.")
    return layers + 1 - count
