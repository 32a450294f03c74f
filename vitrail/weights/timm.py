"""The names and settings of timm: ``vit_*`` and ``deit_*`` with learned positions, and its DINOv2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIZES,
    EncoderConfig,
    Fit,
    HeadConfig,
    Interpolation,
    PositionConfig,
    Preprocessing,
    Size,
    ViTConfig,
    parse_size,
    suggestion,
)
from vitrail.errors import UserError
from vitrail.weights.dialect import Checkpoint, Rule, averaged_heads, same

_SIZE_NAMES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
_NAME = re.compile(
    r"(?P<family>vit|deit)_(?P<size>tiny|small|base|large|huge|giant)(?P<distilled>_distilled)?"
    r"_patch(?P<patch>\d+)(?P<dinov2>_dinov2)?(_(?P<image>\d+))?"
)
_KNOWN = [f"vit_{size}_patch16_224" for size in _SIZE_NAMES if size != "giant"] + [
    f"vit_{size}_patch14_dinov2" for size in ("small", "base", "large", "giant")
]
_FITS: dict[str, Fit] = {"center": "crop", "squash": "squash"}
_INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic", "lanczos")
# Arguments of timm's constructor that are read here, said elsewhere too, or of no effect on a trained model's answers.
_UNDERSTOOD = ("num_classes", "in_chans", "global_pool", "img_size", "dynamic_img_size", "drop_rate", "drop_path_rate")


def understand(config: Mapping[str, Any], tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint from its ``config.json`` (at least ``architecture``) and tensors.

    Raises:
        UserError: an architecture or setting that Vitrail cannot honour.
    """
    name = str(config.get("architecture", ""))
    try:
        return _understand(name, config, tensors, provenance)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"The configuration of this {name} is incomplete or garbled at {error}.") from None


def _understand(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> Checkpoint:
    arguments = dict(config.get("model_args") or {})
    if odd := [key for key in arguments if key not in _UNDERSTOOD]:
        raise UserError(f"This {name} was made with {odd[0]}={arguments[odd[0]]!r}, which Vitrail cannot honour.")
    settings = {**config, **(config.get("pretrained_cfg") or {})}
    match = parse_name(name)
    native = _native_size(match, arguments, settings)
    size = _SIZE_NAMES[match["size"]]
    layers, width, mlp_width, heads = SIZES[size]
    pooling = str(config.get("global_pool", arguments.get("global_pool", "token")))
    if pooling not in ("token", "avg", ""):
        raise UserError(f"This {name} pools by {pooling!r}; Vitrail reads timm's 'token' and 'avg'.")
    classifier = tensors.get("head.weight")
    distilled = match["distilled"] is not None
    architecture = ViTConfig(
        encoder=EncoderConfig(
            layers=layers,
            width=width,
            heads=heads,
            mlp_width=mlp_width,
            mlp="swiglu" if size == "g" else "gelu",
            norm_eps=1e-6,
            layer_scale=1e-5 if match["dinov2"] else None,
        ),
        patch=(int(match["patch"]), int(match["patch"])),
        image_size=native,
        channels=int(arguments.get("in_chans", 3)),
        tokens=("class", "distillation") if distilled else ("class",),
        position=PositionConfig(resampling="bicubic-antialias"),
        head=HeadConfig(
            parts=("class", "distillation") if distilled else ("mean",) if pooling == "avg" else ("class",),
            norm="pooled" if "fc_norm.weight" in tensors else "tokens",
            classes=0 if classifier is None else len(classifier),
        ),
    )
    names = settings.get("label_names") or ()
    if isinstance(names, Mapping):  # from a class's number, as JSON has it, to its name
        names = [names.get(str(number), number) for number in range(architecture.head.classes)]
    return Checkpoint(
        architecture=architecture,
        preprocessing=_preprocessing(match, settings, native),
        class_names=tuple(map(str, names)) if len(names) == architecture.head.classes else (),
        provenance={**provenance, "dialect": "timm", "architecture": name},
        tensors=tensors,
        rules=_rules(architecture),
        ignored=("mask_token",),
    )


def parse_name(name: str) -> re.Match[str]:
    """The words of an architecture such as ``vit_base_patch16_224``.

    Raises:
        UserError: it is no architecture Vitrail reads.
    """
    match = _NAME.fullmatch(name.split(".")[0])
    if match is None or (match["size"] == "giant" and not match["dinov2"]):
        raise UserError(f"Vitrail does not read timm's architecture {name!r}{suggestion(name, _KNOWN)}.")
    return match


def _native_size(match: re.Match[str], arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> Size:
    """The resolution of the position grid: timm writes it in three places, the most explicit one wins."""
    if arguments.get("img_size") is not None:
        return parse_size(arguments["img_size"])
    if settings.get("input_size"):
        return parse_size(settings["input_size"][1:])
    return parse_size(int(match["image"] or (518 if match["dinov2"] else 224)))


def _preprocessing(match: re.Match[str], settings: Mapping[str, Any], native: Size) -> Preprocessing:
    imagenet = match["family"] == "deit" or match["dinov2"]
    fit, interpolation = settings.get("crop_mode", "center"), settings.get("interpolation", "bicubic")
    if fit not in _FITS or interpolation not in _INTERPOLATIONS:
        raise UserError(
            f"Vitrail does not have timm's preprocessing crop_mode={fit!r}, interpolation={interpolation!r}."
        )
    return Preprocessing(
        size=parse_size(settings["input_size"][1:]) if settings.get("input_size") else native,
        fit=_FITS[fit],
        crop_fraction=float(settings.get("crop_pct", 1.0 if match["dinov2"] else 0.9)),
        interpolation=interpolation,
        mean=tuple(settings.get("mean", IMAGENET_MEAN if imagenet else (0.5, 0.5, 0.5))),
        std=tuple(settings.get("std", IMAGENET_STD if imagenet else (0.5, 0.5, 0.5))),
    )


def _rules(architecture: ViTConfig) -> list[Rule]:
    ours, theirs = "encoder.blocks.{l}", "blocks.{l}"
    tokens = {"class": "cls_token", "distillation": "dist_token"}
    names = {"attention.qkv": "attn.qkv", "attention.out": "attn.proj", "norm1": "norm1", "norm2": "norm2"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    rules = [
        *same("patches.projection", "patch_embed.proj"),
        Rule(("tokens",), tuple(tokens[token] for token in architecture.tokens)),
        Rule(("position.tokens", "position.grid"), ("pos_embed",)),
        *same("norm", "fc_norm" if architecture.head.norm == "pooled" else "norm"),
    ]
    for our_name, their_name in names.items():
        rules += same(f"{ours}.{our_name}", f"{theirs}.{their_name}")
    if architecture.encoder.layer_scale is not None:
        rules += [Rule((f"{ours}.scale{i}.scale",), (f"{theirs}.ls{i}.gamma",)) for i in (1, 2)]
    if architecture.head.classes and "distillation" in architecture.head.parts:
        rules += averaged_heads("head", "head_dist")
    elif architecture.head.classes:
        rules += same("classifier", "head")
    return rules
