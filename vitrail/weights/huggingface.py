"""The names and settings of Hugging Face transformers: ViT, DeiT, DINOv2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderConfig,
    Fit,
    HeadConfig,
    Interpolation,
    MLPKind,
    PositionConfig,
    Preprocessing,
    Size,
    ViTConfig,
    parse_size,
    suggestion,
)
from vitrail.errors import UserError
from vitrail.weights.dialect import Checkpoint, Rule, averaged_heads, same

TYPES = ("vit", "deit", "dinov2")

_GELU: dict[str, MLPKind] = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh"}
_PIL: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_IGNORED = (r"(.*\.)?mask_token", r"(.*\.)?pooler\..*")


def understand(
    config: Mapping[str, Any],
    processor: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
) -> Checkpoint:
    """A checkpoint from its ``config.json``, ``preprocessor_config.json`` (None: the type's usual one) and tensors.

    Raises:
        UserError: another model type, or a setting that Vitrail cannot honour.
    """
    kind = str(config.get("model_type"))
    if kind not in TYPES:
        raise UserError(f"Vitrail does not read transformers' model type {kind!r}{suggestion(kind, TYPES)}.")
    try:
        architecture = _architecture(kind, config, tensors)
        preprocessing = _preprocessing(kind, processor, architecture.image_size)
        names = config.get("id2label") or {}
        classes = architecture.head.classes
        class_names = tuple(str(names[str(i)]) for i in range(classes)) if len(names) == classes else ()
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"The configuration of this {kind} model is incomplete or garbled at {error}.") from None
    return Checkpoint(
        architecture=architecture,
        preprocessing=preprocessing,
        class_names=class_names,
        provenance={**provenance, "dialect": "huggingface", "model_type": kind},
        tensors=tensors,
        rules=_rules(kind, architecture, tensors),
        ignored=_IGNORED,
    )


def _architecture(kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ViTConfig:
    width = int(config["hidden_size"])
    if config.get("hidden_act", "gelu") not in _GELU:
        raise UserError(f"The activation {config['hidden_act']!r} is not one Vitrail's encoder has: {list(_GELU)}.")
    mlp: MLPKind = _GELU[config.get("hidden_act", "gelu")]
    layer_scale = None
    if kind == "dinov2":
        mlp_width = int(width * config.get("mlp_ratio", 4))
        layer_scale = float(config.get("layerscale_value", 1.0))
        if config.get("use_swiglu_ffn", False):
            mlp, mlp_width = "swiglu", (int(mlp_width * 2 / 3) + 7) // 8 * 8
    else:
        mlp_width = int(config["intermediate_size"])
    heads = {
        "classifier.weight": HeadConfig(parts=("class", "mean") if kind == "dinov2" else ("class",)),
        "cls_classifier.weight": HeadConfig(parts=("class", "distillation")),
    }
    found = next((name for name in heads if name in tensors), None)
    head = HeadConfig() if found is None else heads[found]
    return ViTConfig(
        encoder=EncoderConfig(
            layers=int(config["num_hidden_layers"]),
            width=width,
            heads=int(config["num_attention_heads"]),
            mlp_width=mlp_width,
            mlp=mlp,
            norm_eps=float(config.get("layer_norm_eps", 1e-6 if kind == "dinov2" else 1e-12)),
            qkv_bias=bool(config.get("qkv_bias", True)),
            layer_scale=layer_scale,
        ),
        patch=parse_size(config["patch_size"]),
        image_size=parse_size(config["image_size"]),
        channels=int(config.get("num_channels", 3)),
        tokens=("class", "distillation") if kind == "deit" else ("class",),
        position=PositionConfig(resampling="bicubic"),
        head=HeadConfig(head.parts, classes=0 if found is None else len(tensors[found])),
    )


def _preprocessing(kind: str, processor: Mapping[str, Any] | None, native: Size) -> Preprocessing:
    if processor is None:  # what the type's published checkpoints come with
        if kind == "vit":
            return Preprocessing(native, "squash", 1.0, "bilinear")
        return Preprocessing(native, "crop", 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    resized: int | Size = _processor_size(processor.get("size", 224))
    if kind == "dinov2" and isinstance(processor.get("size"), int):  # its processor's one number is the shortest edge
        resized = processor["size"]
    cropped = _processor_size(processor["crop_size"]) if processor.get("do_center_crop") else resized
    fit: Fit = "crop" if isinstance(resized, int) else "squash"
    if isinstance(cropped, int):  # the shortest edge alone: transformers keeps the rest, a ViT of fixed size cannot
        cropped = (cropped, cropped)
    edge = resized if isinstance(resized, int) else resized[0]
    normalised = processor.get("do_normalize", True)
    return Preprocessing(
        size=cropped,
        fit=fit,
        crop_fraction=cropped[0] / edge,
        interpolation=_PIL[int(processor.get("resample", 2))],
        mean=tuple(processor["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        std=tuple(processor["image_std"]) if normalised else (1.0, 1.0, 1.0),
    )


def _processor_size(size: Any) -> int | Size:
    """An image processor's size: the shortest edge as a number, or (height, width)."""
    if isinstance(size, Mapping):
        return int(size["shortest_edge"]) if "shortest_edge" in size else (int(size["height"]), int(size["width"]))
    return parse_size(size)


def _rules(kind: str, architecture: ViTConfig, tensors: Mapping[str, Tensor]) -> list[Rule]:
    prefix = f"{kind}." if f"{kind}.embeddings.cls_token" in tensors else ""
    ours, theirs = "encoder.blocks.{l}", prefix + "encoder.layer.{l}"
    token_names = {"class": "cls_token", "distillation": "distillation_token"}
    rules = [
        *same("patches.projection", f"{prefix}embeddings.patch_embeddings.projection"),
        Rule(("tokens",), tuple(f"{prefix}embeddings.{token_names[token]}" for token in architecture.tokens)),
        Rule(("position.tokens", "position.grid"), (f"{prefix}embeddings.position_embeddings",)),
        *same("norm", f"{prefix}layernorm"),
        *same(f"{ours}.attention.out", f"{theirs}.attention.output.dense"),
    ]
    for tensor in ("weight", "bias") if architecture.encoder.qkv_bias else ("weight",):
        qkv = tuple(f"{theirs}.attention.attention.{part}.{tensor}" for part in ("query", "key", "value"))
        rules.append(Rule((f"{ours}.attention.qkv.{tensor}",), qkv))
    if kind == "dinov2":
        mlp = ("weights_in", "weights_out") if architecture.encoder.mlp == "swiglu" else ("fc1", "fc2")
        names = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": f"mlp.{mlp[0]}", "mlp.fc2": f"mlp.{mlp[1]}"}
        rules += [Rule((f"{ours}.scale{i}.scale",), (f"{theirs}.layer_scale{i}.lambda1",)) for i in (1, 2)]
    else:
        names = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
        names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for our_name, their_name in names.items():
        rules += same(f"{ours}.{our_name}", f"{theirs}.{their_name}")
    if architecture.head.parts == ("class", "distillation"):
        rules += averaged_heads("cls_classifier", "distillation_classifier")
    elif architecture.head.classes:
        rules += same("classifier", "classifier")
    return rules
