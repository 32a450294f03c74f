"""What a run is asked to do: how photos are varied, how a model is optimised, what fine-tuning takes; no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from vitrail.config import Resampling, Size, suggestion
from vitrail.errors import UserError
from vitrail.parts import LoraConfig, Role


@dataclass(frozen=True)
class Augmentation:
    """How differently a photo is seen each time it is trained on."""

    smallest_crop: float = 0.35
    """Smallest share of a photo's area that a random crop may take."""
    flip: float = 0.5
    operations: int = 2
    """RandAugment's N: operations on each photo (1909.13719); their strength is ``magnitude``, M / 10."""
    magnitude: float = 0.5
    erase: float = 0.1
    """Chance that a rectangle is erased (1708.04896)."""
    mixup: float = 0.2
    """Beta parameter of mixup (1710.09412); 0: none."""
    cutmix: float = 1.0
    """Beta parameter of cutmix (1905.04899); 0: none."""
    mixing: float = 0.5
    """Chance that two photos are mixed, by mixup or cutmix, each as likely."""
    drop_patches: float = 0.0
    """Share of its patches that a Vision Transformer is not shown of each photo (2208.07220): so much less work."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop_patches < 1.0:
            raise UserError(f"drop_patches must lie in [0, 1), not {self.drop_patches}.")


OptimizerKind = Literal["adamw", "sgd"]
ScheduleKind = Literal["cosine", "linear", "rsqrt", "constant"]
OnSpike = Literal["stop", "rollback"]


@dataclass(frozen=True)
class TrainSettings:
    """How a model is optimised: the same for every model and objective."""

    steps: int
    batch_size: int = 32
    """Samples a step; an even number, for partners in mixing to stay together."""
    accumulate: int = 1
    """Pieces a batch is computed in, one after the other: the same gradient in less memory."""
    repeats: int = 1
    """How often each of a batch's samples stands in it, varied anew (repeated augmentation, 1901.09335)."""
    optimizer: OptimizerKind = "adamw"
    """``sgd`` has momentum 0.9."""
    learning_rate: float = 1e-4
    """At its highest."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = 0.05
    """Of matrices and kernels; norms, biases, tokens and positions have none."""
    layer_decay: float = 0.75
    """Each layer's rate is that of the one above times this (BEiT, 2106.08254)."""
    schedule: ScheduleKind = "cosine"
    """How the rate falls: to 0 along a cosine or a line, with the inverse square root of the step, or not."""
    warmup: float = 0.1
    """Below 1, share of the steps in which the rate rises first; else their number."""
    clip: float | None = 1.0
    """Largest norm of all gradients together; 0 or None: any."""
    average: float = 0.05
    """The weights that count are an exponential average over this share of the steps, or, from 1, so many; 0: none."""
    bf16: bool = False
    """Whether matrix products are done in bfloat16 (autocast)."""
    compile: bool = False
    """Whether blocks are compiled first, which takes a C++ compiler and some seconds, and pays in long runs."""
    seed: int = 0
    workers: int = 0
    """Processes that make views; 0: threads of this one. The result is the same."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: at the end only."""
    patience: int = 0
    """Evaluations in a row without a new best after which training stops; 0: never."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: by ``checkpoint_minutes`` alone."""
    checkpoint_minutes: float = 10.0
    """Minutes after which a checkpoint is written between those; 0: none."""
    keep: int = 2
    """How many of the last checkpoints are kept, besides the best."""
    on_spike: OnSpike = "stop"
    """What to do when the loss is lost: stop, or go back to the last good checkpoint and on with half the rate."""
    spike: float = 10.0
    """How many times its running median the loss may be, for some steps; 0: any finite number."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "repeats", "keep"):
            _at_least(name, getattr(self, name), 1)
        for name in ("learning_rate", "weight_decay", "warmup", "average", "seed", "workers", "evaluate_every"):
            _at_least(name, getattr(self, name), 0)
        for name in ("patience", "checkpoint_every", "checkpoint_minutes", "spike"):
            _at_least(name, getattr(self, name), 0)
        if self.repeats > 1 and self.batch_size % (2 * self.repeats):
            raise UserError(
                f"A batch of {self.batch_size} cannot hold pairs of samples {self.repeats} times each: "
                f"choose a multiple of {2 * self.repeats}."
            )
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise UserError(f"betas must lie in [0, 1), not {self.betas}.")
        if not 0.0 < self.layer_decay <= 1.0:
            raise UserError(f"layer_decay must lie in (0, 1], not {self.layer_decay}.")
        if self.patience and not self.evaluate_every:
            raise UserError("patience counts evaluations, and there are none: set evaluate_every too.")
        if self.on_spike == "rollback" and not self.checkpoint_every:
            raise UserError("Going back to a checkpoint needs some at fixed steps: set checkpoint_every too.")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise UserError(f"{name} must be at least {least}, not {value}.")


RANK = 8
"""Of ``lora`` without a number, as the paper has it for RoBERTa base (2106.09685, table 9)."""


@dataclass(frozen=True)
class Lora:
    """What low-rank adaptation takes besides its rank, which the method says."""

    lora_alpha: float = 8.0
    """The update's scale is this divided by the rank: set once and left, as in the paper (2106.09685, section 4.1)."""
    lora_roles: tuple[Role, ...] = ("q", "v")
    """The matrices that are adapted; queries and values are the paper's choice (section 7.1)."""
    lora_dropout: float = 0.0
    """Of what the low-rank matrices see."""

    def __post_init__(self) -> None:
        self.of_rank(RANK)  # says what cannot be meant

    def of_rank(self, rank: int) -> LoraConfig:
        """As the model takes it."""
        return LoraConfig(rank, self.lora_alpha, self.lora_roles, self.lora_dropout)


METHODS = ("auto", "probe", "knn", "full", "lora")


@dataclass(frozen=True)
class FinetuneSettings:
    """What a fine-tuning run was asked to do: the ``config.yaml`` of a run folder."""

    data: str
    weights: str = "dinov2-small"
    architecture: str | None = None
    """What a bare state dict is, or which random model ``none`` means."""
    method: str = "auto"
    """``probe``, ``knn``, ``full``, ``layers:K`` (the top K blocks), ``lora`` or ``lora:R`` (of rank R), or ``auto``:
    probe or full, whichever suits; full from random weights."""
    epochs: int | None = None
    """How often each photo is trained on; None: by their number. Not for probe and knn."""
    resolution: Size | None = None
    """Height and width in pixels; None: what the weights are fed by default, or of a random CNN small photos' own."""
    resampling: Resampling = "bicubic-corner"
    """How positions are taken to another grid: the article's way (section 5.1)."""
    val_fraction: float = 0.2
    """Share of each class held out where the data have no split of their own."""
    seed: int = 0
    batch_size: int = 32
    device: str | None = None
    max_unreadable: float = 0.1
    """Share of files that may be unreadable before the run stops."""
    tensorboard: str | None = None
    """Folder for TensorBoard's curves while training."""
    tuning: dict[str, Any] = field(default_factory=dict)
    """Fields of ``TrainSettings``, ``Augmentation`` and ``Lora`` to depart in from the usual."""

    def __post_init__(self) -> None:
        if self.method not in METHODS and not re.fullmatch(r"(layers|lora):[1-9]\d*", self.method):
            known = [*METHODS, "layers:4", "lora:8"]
            raise UserError(f"There is no method {self.method!r}{suggestion(self.method, known)}.")
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs must be at least 1, not {self.epochs}.")
        if not 0.0 < self.val_fraction < 1.0:
            raise UserError(f"val_fraction must lie between 0 and 1, not {self.val_fraction}.")
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {self.batch_size}.")
        if self.seed < 0:
            raise UserError(f"seed must be 0 or more, not {self.seed}.")
        if not 0.0 <= self.max_unreadable <= 1.0:
            raise UserError(f"max_unreadable must lie in [0, 1], not {self.max_unreadable}.")


OBJECTIVES = ("masked-patches", "mae", "moco", "dino", "supervised")


@dataclass(frozen=True)
class PretrainSettings:
    """What a pretraining run was asked to do; None: the recipe's, or the usual for model, objective and data."""

    data: str
    objective: str | None = None
    weights: str | None = None
    """A model to go on from; None: random weights."""
    architecture: str | None = None
    """A variant such as ``ViT-S/16``; with ``weights``, what a bare state dict is."""
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    patch: int | None = None
    resolution: Size | None = None
    """Height and width in pixels."""
    stem: str | None = None
    """A ResNet before the patches: units of its stages, and how many times 64 channels wide, ``1-1x0.5``; it has
    stride 4, and each stage after the first doubles that."""
    position: str | None = None
    """How tokens know where they stand: a kind, ``relative-2d``, or a kind and its place, ``learned-1d:shared``."""
    resampling: Resampling | None = None
    """How the positions of ``weights`` are taken to another grid; None: as the model says."""
    pool: str | None = None
    """What labels are told from: ``class`` token, ``mean`` of the patches, or ``map``, attention pooling."""
    dropout: float | None = None
    drop_path: float | None = None
    """Noise in the model: of dense layers, and stochastic depth at the last block."""
    epochs: int | None = None
    steps: int | None = None
    """Instead of ``epochs``."""
    batch_size: int | None = None
    learning_rate: float | None = None
    val_fraction: float = 0.2
    """Share of each class held out where labelled data have no split of their own."""
    max_unreadable: float = 0.1
    """Share of files that may be unreadable before the run stops."""
    seed: int = 0
    workers: int = 0
    """Processes that make views; 0: threads of this one. The result is the same."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, besides one every ten minutes."""
    recipe: str | None = None
    device: str | None = None
    tensorboard: str | None = None
    """Folder for TensorBoard's curves."""
    memory: float = 2.0
    """Gigabytes that decoded pictures may take; beyond it they are read again each time. The result is the same."""
    tuning: dict[str, Any] = field(default_factory=dict)
    """Fields of ``TrainSettings`` and ``Augmentation``, and arguments of the objective, to depart in."""

    def __post_init__(self) -> None:
        if self.objective is None and self.recipe is None:
            raise UserError(f"No objective is named: choose one of {', '.join(OBJECTIVES)}, or a recipe.")
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise UserError(f"There is no objective {self.objective!r}{suggestion(self.objective, OBJECTIVES)}.")
        for name in ("layers", "width", "heads", "patch", "epochs", "steps", "batch_size"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("seed", "workers", "memory"):
            _at_least(name, getattr(self, name), 0)
        if self.epochs is not None and self.steps is not None:
            raise UserError("Both epochs and steps are given: leave one of them out.")
        if not 0.0 < self.val_fraction < 1.0:
            raise UserError(f"val_fraction must lie between 0 and 1, not {self.val_fraction}.")
        if not 0.0 <= self.max_unreadable <= 1.0:
            raise UserError(f"max_unreadable must lie in [0, 1], not {self.max_unreadable}.")


FREE = frozenset({"workers", "device", "tensorboard", "memory"})
"""Of a pretraining run's settings, those that may differ when it goes on."""
