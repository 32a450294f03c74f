"""What stands in timm's ``config.json`` beside the architecture, for its Transformers and CNNs alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from vitrail.config import Fit, Interpolation, ModelCard, Preprocessing, parse_size
from vitrail.errors import UserError
from vitrail.weights.dialect import named_classes

_FITS: dict[str, Fit] = {"center": "crop", "squash": "squash"}
_INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic", "lanczos")


def arguments_of(name: str, settings: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Arguments of timm's constructor in which a model departs from its architecture.

    Raises:
        UserError: one is not among ``known``.
    """
    arguments = dict(settings.get("model_args") or {})
    if odd := [key for key in arguments if key not in known]:
        raise UserError(f"This {name} was made with {odd[0]}={arguments[odd[0]]!r}, which Vitrail cannot honour.")
    return arguments


def pretrained_of(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of the weights, wherever it stands."""
    return {**settings, **(settings.get("pretrained_cfg") or {})}


def classes_of(name: str, settings: Mapping[str, Any], classifier: Tensor | None) -> int:
    """How many classes the classifier (classes, ...) tells apart; 0: there is none.

    Raises:
        UserError: the settings say otherwise.
    """
    told = settings.get("num_classes")
    if classifier is not None and told is not None and told != len(classifier):
        raise UserError(
            f"The configuration of this {name} says num_classes={told}, but its classifier tells {len(classifier)} "
            "apart: one of the two files is another model's."
        )
    return 0 if classifier is None else len(classifier)


def class_names_of(pretrained: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Their names, if it says them."""
    names = pretrained.get("label_names") or ()
    if isinstance(names, Mapping):  # from a class's number, as JSON has it, to its name
        names = [names.get(str(number), number) for number in range(len(names))]
    return named_classes(names, classes)


def preprocessing_of(pretrained: Mapping[str, Any], usual: Preprocessing) -> Preprocessing:
    """How the model is fed; ``usual`` where nothing is said.

    Raises:
        UserError: in a way that Vitrail does not have.
    """
    fit, interpolation = pretrained.get("crop_mode", "center"), pretrained.get("interpolation", usual.interpolation)
    if fit not in _FITS or interpolation not in _INTERPOLATIONS:
        raise UserError(
            f"Vitrail does not have timm's preprocessing crop_mode={fit!r}, interpolation={interpolation!r}."
        )
    return Preprocessing(
        size=parse_size(pretrained["input_size"][1:]) if pretrained.get("input_size") else usual.size,
        fit=_FITS[fit],
        crop_fraction=float(pretrained.get("crop_pct", usual.crop_fraction)),
        interpolation=interpolation,
        mean=tuple(pretrained.get("mean", usual.mean)),
        std=tuple(pretrained.get("std", usual.std)),
    )


def settings_of(
    card: ModelCard, name: str, pooling: str, arguments: Mapping[str, Any], first: str, classifier: str
) -> dict[str, Any]:
    """A ``config.json``.

    Args:
        name: timm's architecture.
        arguments: in which the model departs from it.
        first, classifier: timm's names of the first convolution and of the classifier.
    """
    config, how = card.architecture, card.preprocessing
    return {
        "architecture": name,
        "num_classes": config.head.classes,
        "num_features": config.width,
        "global_pool": pooling,
        "model_args": dict(arguments),
        "pretrained_cfg": {
            "num_classes": config.head.classes,
            "input_size": [config.channels, *how.size],
            "pool_size": None,
            "custom_load": False,
            "crop_pct": how.crop_fraction,
            "crop_mode": "center" if how.fit == "crop" else "squash",
            "interpolation": how.interpolation,
            "mean": list(how.mean),
            "std": list(how.std),
            "first_conv": first,
            "classifier": classifier,
            **({"label_names": list(card.class_names)} if card.class_names else {}),
        },
    }
