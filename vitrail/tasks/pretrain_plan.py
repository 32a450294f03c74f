"""What was asked for, the recipe and the usual -> everything that a pretraining run is."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, make_dataclass, replace
from typing import Any, Literal, get_args

from vitrail.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    EncoderConfig,
    HeadConfig,
    ModelCard,
    Part,
    Place,
    PositionConfig,
    PositionKind,
    Preprocessing,
    ResNetConfig,
    Size,
    ViTConfig,
    suggestion,
    transformer,
    variant,
)
from vitrail.config import architecture as named
from vitrail.data.distort import Distortion
from vitrail.data.views import Policy
from vitrail.errors import UserError
from vitrail.objectives import dino, masking, moco
from vitrail.objectives.dino import DINO
from vitrail.objectives.mae import MAE
from vitrail.objectives.masked_patches import MaskedPatches
from vitrail.objectives.moco import MoCoV3
from vitrail.objectives.objective import Objective
from vitrail.objectives.supervised import Supervised
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.source import Views
from vitrail.record import changed
from vitrail.settings import Augmentation, PretrainSettings, TrainSettings

KINDS: dict[str, tuple[Callable[..., Objective[Any]], Policy]] = {
    "masked-patches": (MaskedPatches, masking.CROP_AND_FLIP),
    "mae": (MAE, masking.CROP_AND_FLIP),
    "moco": (MoCoV3, moco.VIEWS),
    "dino": (DINO, dino.VIEWS),
    "supervised": (Supervised, Augmentation()),
}
"""Objective -> its class, and its usual views."""
HIDING = ("masked-patches", "mae")
"""Objectives that learn nothing of the head's output, so that the patches' mean is the better one."""
SEEN = 2_000_000
"""Views a run is to see; few pictures are seen more often, within ``EPOCHS``."""
EPOCHS = (40, 800)
BATCH = 256
RATE = 1.5e-4
"""For a batch of 256 and a width of 768, as in the published code of MAE and MoCo v3."""
CNN_RATE = 2e-3
"""For a batch of 256 and a CNN, which at the rate of a ViT-B learns next to nothing (on digits, in 120 steps of 64, an
R14x0.5 comes to 25 %, and to 82 % at a rate of 1e-3)."""
WIDTH = 768
"""ViT-B's, for which the papers' rates and modules are; a narrower model has a higher rate and narrower modules."""
SMALL = 112
"""Pixels below which pictures get a small model of small patches."""
LOOKS = 20
"""How often at most held-out pictures are looked at while training."""
APART = {"steps": "--steps", "batch_size": "--batch-size", "seed": "--seed", "workers": "--workers"}
"""Fields of ``TrainSettings`` that have an option of their own."""


@dataclass(frozen=True)
class Plan:
    """A run in full: with the pictures, all that decides its result."""

    objective: str
    arguments: dict[str, Any]
    """Of the objective."""
    architecture: Architecture
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    """None: ``distortions`` are what there is."""
    distortions: tuple[Distortion, ...]
    training: TrainSettings
    pictures: int
    """How many are trained on."""
    held_out: int
    classes: tuple[str, ...]
    files: str
    """Digest of the pictures' names, sizes and labels."""
    unreadable: dict[str, str]

    @property
    def policy(self) -> Policy:
        """How views are made."""
        return self.distortions if self.augmentation is None else self.augmentation

    @property
    def steps_per_epoch(self) -> float:
        """Batches that show every picture once."""
        return self.pictures / self.training.batch_size


def objective_of(settings: PretrainSettings, recipe: Recipe | None) -> str:
    """The objective's name.

    Raises:
        UserError: the recipe is for fine-tuning, or for another objective than was asked for.
    """
    if recipe is None:
        assert settings.objective is not None
        return settings.objective
    if recipe.makes != "pretrain":
        raise UserError(f"The recipe {recipe.name} is for fine-tuning: give it to vitrail finetune.")
    named = recipe.objective.kind.removesuffix("-v3")
    if settings.objective not in (None, named):
        raise UserError(
            f"The recipe {recipe.name} is for the objective {named}, not {settings.objective}: leave one of them out."
        )
    return named


def architecture_of(
    settings: PretrainSettings, recipe: Recipe | None, start: ModelCard | None, side: int
) -> Architecture:
    """The model, with no classifier yet.

    Args:
        start: of the model to go on from.
        side: usual length of the pictures' shorter side, which decides where nothing is said.

    Raises:
        UserError: there is no such variant, or sizes do not go together.
    """
    sizes = {name: getattr(settings, name) for name in ("layers", "width", "heads", "patch")}
    asked = {name: value for name, value in sizes.items() if value is not None}
    if start is not None:
        parts = {name: getattr(settings, name) for name in ("stem", "position", "pool")}
        asked |= {name: value for name, value in parts.items() if value is not None}
        if asked:
            raise UserError(f"{settings.weights} says itself what it is: leave out --{min(asked)}.")
        begun = start.architecture.with_head(replace(start.architecture.head, classes=0, prelogits=None))
        return begun.noisy(settings.dropout, settings.drop_path)
    if settings.architecture is not None:
        found = named(settings.architecture)
        if not isinstance(found, ViTConfig):
            return _cnn(settings, side)
        config = found
    elif recipe is not None:
        config = recipe.architecture
    else:
        config = _usual_model(side, settings.patch)
    encoder = config.encoder
    if settings.width is not None:
        encoder = _widened(encoder, settings.width, settings.heads)
    encoder = replace(encoder, layers=settings.layers or encoder.layers, heads=settings.heads or encoder.heads)
    stem = config.stem if settings.stem is None else _stem(settings.stem)
    patch = config.patch if stem is config.stem else (1, 1)
    patch = (settings.patch, settings.patch) if settings.patch else patch
    made = replace(
        config,
        encoder=encoder,
        patch=patch,
        stem=stem,
        image_size=settings.resolution or config.image_size,
        position=config.position if settings.position is None else _position(settings.position),
        head=config.head if settings.pool is None else replace(config.head, parts=(_pool(settings.pool),)),
    )
    return made.noisy(settings.dropout, settings.drop_path)


def _cnn(settings: PretrainSettings, side: int) -> Architecture:
    """One by name, at the size of small pictures if none is said.

    Raises:
        UserError: what a Vision Transformer alone has is asked for.
    """
    assert settings.architecture is not None
    config = named(settings.architecture, settings.resolution or size_of_small(side))
    for name in ("layers", "width", "heads", "patch", "stem", "position", "pool"):
        if getattr(settings, name) is not None:
            transformer(config, f"--{name}")
    return config.noisy(settings.dropout, settings.drop_path)


def size_of_small(side: int) -> Size | None:
    """That a CNN takes small pictures at, their own; None: they are not small."""
    return (side, side) if 0 < side < SMALL else None


def _position(text: str) -> PositionConfig:
    """``KIND`` or ``KIND:PLACE``."""
    kind, _, place = text.partition(":")
    return PositionConfig(one_of(kind, PositionKind, "position"), place=one_of(place or "stem", Place, "place"))


def _stem(text: str) -> ResNetConfig:
    """``1-1`` or ``1-1x0.5``: units of the stages, and the width in 64 channels."""
    match = re.fullmatch(r"(\d+(?:-\d+)*)(?:x(\d+(?:\.\d+)?))?", text)
    if match is None:
        raise UserError(f"{text!r} is no stem: write the units of its stages, 3-4-9, and x0.5 for half the width.")
    return ResNetConfig(tuple(map(int, match[1].split("-"))), int(64 * float(match[2] or 1)))


def _pool(text: str) -> Part:
    pool: Part = one_of(text, Literal["class", "mean", "map"], "pooling")
    return pool


def one_of(text: str, words: Any, what: str) -> Any:
    """A word of a ``Literal``.

    Raises:
        UserError: it is none of them.
    """
    known = get_args(words)
    if text not in known:
        raise UserError(f"There is no {what} {text!r}{suggestion(text, known)}.")
    return text


def _widened(encoder: EncoderConfig, width: int, heads: int | None) -> EncoderConfig:
    """Another width: heads of 64, or of 32 where that is too narrow for two."""
    usual = max(1, width // 64) if width >= 128 and width % 64 == 0 else math.gcd(encoder.heads, width)
    return replace(encoder, width=width, heads=heads or usual, mlp_width=4 * width)


def _usual_model(side: int, patch: int | None) -> ViTConfig:
    """ViT-S/16; for small pictures 6 layers of width 128 and about 8 x 8 patches."""
    if not 0 < side < SMALL:
        return variant("ViT-S/16")
    patch = patch or max(1, round(side / 8))
    size = max(1, side // patch) * patch
    return ViTConfig(EncoderConfig(6, 128, 4, 512), (patch, patch), (size, size))


def with_head(config: Architecture, objective: str, classes: int) -> Architecture:
    """The model with the head that an objective leaves it with.

    Raises:
        UserError: the objective is for Vision Transformers.
    """
    head = config.head
    if objective in HIDING:
        return transformer(config, f"The objective {objective}").with_head(HeadConfig(("mean",), norm=head.norm))
    if objective == "supervised":
        return config.with_head(replace(head, classes=classes))
    return config.with_head(replace(head, classes=0, prelogits=None))


def preprocessing_of(size: Size, start: ModelCard | None) -> Preprocessing:
    """That of the model gone on from, or the usual: ImageNet's mean and deviation, whole small pictures."""
    if start is not None:
        return start.preprocessing.at(size)
    crop = 1.0 if max(size) < SMALL else 0.875
    return Preprocessing(size, crop_fraction=crop, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def defaults(objective: str, config: Architecture) -> dict[str, Any]:
    """The objective's own arguments and their usual values; those for a narrow model are narrower."""
    signature = inspect.signature(KINDS[objective][0])
    usual = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.default, (bool, int, float)) and name != "seed"
    }
    width = config.width
    if objective == "moco" and not isinstance(config, ViTConfig):
        usual["freeze_patches"] = False  # it has no patch embedding
    if width >= WIDTH:
        return usual
    if objective == "mae" and isinstance(config, ViTConfig):
        half = max(4, width // 8 * 4)  # sines and cosines of two directions
        heads = math.gcd(config.encoder.heads, half)
        usual |= {"layers": max(1, config.layers // 2), "width": half, "heads": heads}
    for name in {"hidden", "outputs"} & set(usual) if objective in ("moco", "dino") else ():
        if name == "hidden" or objective == "dino":
            usual[name] = max(usual[name] * width // WIDTH, 2)
    return usual


def arguments_of(recipe: Recipe | None, objective: str, config: Architecture) -> dict[str, Any]:
    """The objective's arguments, before any tuning."""
    usual = defaults(objective, config)
    if recipe is None:
        return usual
    smoothing = {"smoothing": recipe.label_smoothing} if objective == "supervised" else {}
    return {**usual, **recipe.objective.arguments, **smoothing}


def training_of(
    settings: PretrainSettings, recipe: Recipe | None, objective: str, config: Architecture, pictures: int, bf16: bool
) -> TrainSettings:
    """How the model is optimised, before any tuning."""
    batch = settings.batch_size or (recipe.batch_size if recipe else min(BATCH, max(2, pictures // 2 * 2)))
    steps = settings.steps
    if steps is None:
        if recipe is not None and settings.epochs is None:
            steps = max(1, recipe.steps(pictures, batch))
        else:
            epochs = settings.epochs or min(max(round(SEEN / pictures), EPOCHS[0]), EPOCHS[1])
            steps = epochs * -(-pictures // batch)
    usual = TrainSettings(
        steps,
        batch,
        learning_rate=(RATE * max(1.0, WIDTH / config.width) if isinstance(config, ViTConfig) else CNN_RATE)
        * batch
        / 256,
        betas=(0.9, 0.95),
        layer_decay=1.0,
        warmup=0.05,
        average=0.0,
        bf16=bf16,
        seed=settings.seed,
        workers=settings.workers,
        checkpoint_every=settings.checkpoint_every or 0,
    )
    if objective == "supervised":
        per_epoch = -(-pictures // batch)
        usual = replace(usual, evaluate_every=per_epoch * -(-steps // (LOOKS * per_epoch)))
    if recipe is not None:
        usual = _as_in(recipe, usual, pictures)
    return usual if settings.learning_rate is None else replace(usual, learning_rate=settings.learning_rate)


def _as_in(recipe: Recipe, usual: TrainSettings, pictures: int) -> TrainSettings:
    """A warm-up that would be most of a shorter run keeps its share of the recipe's instead."""
    rising = recipe.warmup_steps(pictures, usual.batch_size)
    share = recipe.warmup_steps() / max(recipe.steps(), 1)
    return replace(
        usual,
        optimizer=recipe.optimizer,
        learning_rate=recipe.rate(usual.batch_size),
        betas=recipe.betas or usual.betas,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        schedule=recipe.schedule,
        warmup=float(rising) if rising <= usual.steps / 2 else min(share, 0.5),
        clip=recipe.clip,
        average=0.0 if recipe.average is None else 1.0 / (1.0 - recipe.average),
    )


def policy_of(recipe: Recipe | None, objective: str) -> Policy:
    """How views are made, before any tuning."""
    views = None if recipe is None else recipe.views
    if views is None:
        return KINDS[objective][1]
    return Augmentation(**{entry.name: getattr(views, entry.name) for entry in fields(Views)})


def tuned(
    training: TrainSettings, policy: Policy, arguments: Mapping[str, Any], tuning: Mapping[str, Any]
) -> tuple[TrainSettings, Policy, dict[str, Any]]:
    """All three with what was asked to be otherwise; the objective's arguments go before fields of the same name.

    Raises:
        UserError: there is no such setting, or a value has the wrong type.
    """
    if own := [name for name in tuning if name in APART]:
        raise UserError(f"{own[0]} has an option of its own: give {APART[own[0]]} instead.")
    table = make_dataclass("Arguments", [(name, type(value)) for name, value in arguments.items()], frozen=True)
    tables = [table(**arguments), training, *([policy] if isinstance(policy, Augmentation) else [])]
    found, trained, *views = changed(tables, tuning)
    own_arguments = {name: getattr(found, name) for name in arguments}
    return trained, views[0] if views else policy, own_arguments
