"""The names and settings of Hugging Face transformers: ViT, DeiT, DINOv2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderConfig,
    Fit,
    HeadConfig,
    Interpolation,
    MLPKind,
    ModelCard,
    PositionConfig,
    Preprocessing,
    Size,
    ViTConfig,
    parse_size,
    registered,
    size_text,
    suggestion,
    transformer,
)
from vitrail.errors import UserError
from vitrail.weights.dialect import (
    SAME,
    TABLE,
    TOKENS,
    Checkpoint,
    Found,
    Rule,
    TwoWay,
    averaged_heads,
    named_classes,
    same,
    sayable,
    stacked,
    translate_back,
)
from vitrail.weights.store import write_json, write_tensors

TYPES = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
    "vit_mae": "ViTMAEModel",
}
"""Model types, and the class that each is written for."""

_GELU: dict[str, MLPKind] = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh"}
_PIL: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_IGNORED = (r"(.*\.)?mask_token", r"(.*\.)?pooler\..*", r"decoder\..*")


class HuggingFace(TwoWay):
    """A folder as transformers saves it, or a repository of the hub."""

    name = "huggingface"
    lost = ("the way positions are resampled", "temperature")

    def claims(self, found: Found) -> bool:
        """By ``model_type`` in a ``config.json``."""
        return found.settings is not None and "model_type" in found.settings

    def read(self, found: Found) -> Checkpoint:
        """See ``Dialect.read``: ViT, DeiT, DINOv2 with and without registers, and the encoder of MAE."""
        assert found.settings is not None
        return understand(found.settings, found.processor, found.tensors, found.provenance)

    def write(self, card: ModelCard, tensors: Mapping[str, Tensor], path: Path) -> None:
        """See ``TwoWay.write``: what ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load."""
        kind, prefix = kind_of(card)
        config = transformer(card.architecture, "transformers")
        theirs = translate_back(naming(kind, config, prefix, "disk"), config, tensors)
        if kind.startswith("dinov2"):  # which only pretraining uses, but the class has a place for it
            theirs[f"{prefix}embeddings.mask_token"] = torch.zeros(1, config.encoder.width)
        processor = _processor(card.preprocessing)
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / "model.safetensors", theirs, {"format": "pt"})
        write_json(path / "config.json", _settings(kind, card))
        write_json(path / "preprocessor_config.json", processor)


_WORDS: dict[str, tuple[Any, ...]] = {
    "positions of kind": ("learned-1d",),
    "positions at": ("stem",),
    "positions of the learned tokens:": (True,),
    "a head that sees layers from the last:": (1,),
    "a last LayerNorm on": ("tokens",),
    "pre-logits:": (False,),
    "a ResNet before the patches:": (False,),
}
_PLAIN: dict[str, tuple[Any, ...]] = {"an MLP of kind": ("gelu", "gelu-tanh")}
_WORDS_OF: dict[str, dict[str, tuple[Any, ...]]] = {
    "vit_mae": _PLAIN | {"learned tokens": (("class",),), "register tokens:": (False,)},
    "vit": _PLAIN | {"learned tokens": (("class",),), "register tokens:": (False,), "a head on": (("class",),)},
    "deit": _PLAIN | {"register tokens:": (False,), "a head on": (("class",),)},
    "dinov2": {"learned tokens": (("class",),), "a head on": (("class", "mean"),)},
    "dinov2_with_registers": {"learned tokens": (("class",),), "a head on": (("class", "mean"),)},
}


def kind_of(card: ModelCard) -> tuple[str, str]:
    """The model type that has words for all of a model, and the prefix of all names but the head's.

    Raises:
        UserError: there is none; what it has no words for is named.
    """
    kind = _nearest(card, transformer(card.architecture, "transformers"))
    words = _WORDS | _WORDS_OF[kind]
    if not card.architecture.head.classes:
        words["a head on"] = (("class",),)
    sayable("transformers", words, card.architecture)
    return kind, f"{kind}." if card.architecture.head.classes else ""


def _nearest(card: ModelCard, config: ViTConfig) -> str:
    """The model type that has words for most of a model; MAE's encoder is one until it has a head."""
    if card.provenance.get("model_type") == "vit_mae" and not config.head.classes:
        return "vit_mae"
    if config.registers:
        return "dinov2_with_registers"
    if config.encoder.layer_scale is not None:
        return "dinov2"
    return "deit" if "distillation" in config.tokens else "vit"


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
        class_names = named_classes([names[str(i)] for i in range(len(names))] if classes else [], classes)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"The configuration of this {kind} model is incomplete or garbled at {error}.") from None
    prefix = next((f"{name}." for name in (kind, "vit") if f"{name}.embeddings.cls_token" in tensors), "")
    layout = "5" if any(name.endswith(".attention.q_proj.weight") for name in tensors) else "disk"
    return Checkpoint(
        architecture=architecture,
        preprocessing=preprocessing,
        class_names=class_names,
        provenance={**provenance, "dialect": "huggingface", "model_type": kind},
        tensors=tensors,
        rules=naming(kind, architecture, prefix, layout),
        ignored=_IGNORED,
    )


def _architecture(kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ViTConfig:
    width = int(config["hidden_size"])
    if config.get("hidden_act", "gelu") not in _GELU:
        raise UserError(f"The activation {config['hidden_act']!r} is not one Vitrail's encoder has: {list(_GELU)}.")
    mlp: MLPKind = _GELU[config.get("hidden_act", "gelu")]
    layer_scale, registers = None, 0
    if dinov2 := kind.startswith("dinov2"):
        mlp_width = int(width * config.get("mlp_ratio", 4))
        layer_scale = float(config.get("layerscale_value", 1.0))
        if config.get("use_swiglu_ffn", False):
            mlp, mlp_width = "swiglu", (int(mlp_width * 2 / 3) + 7) // 8 * 8
        registers = int(config.get("num_register_tokens", 4)) if kind == "dinov2_with_registers" else 0
    else:
        mlp_width = int(config["intermediate_size"])
    heads = {
        "classifier.weight": HeadConfig(parts=("class", "mean") if dinov2 else ("class",)),
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
            norm_eps=float(config.get("layer_norm_eps", 1e-6 if dinov2 else 1e-12)),
            qkv_bias=bool(config.get("qkv_bias", True)),
            layer_scale=layer_scale,
        ),
        patch=parse_size(config["patch_size"]),
        image_size=parse_size(config["image_size"]),
        channels=int(config.get("num_channels", 3)),
        tokens=("class", "distillation") if kind == "deit" else ("class", *registered(registers)),
        position=PositionConfig(resampling="bicubic-antialias" if registers else "bicubic"),
        head=HeadConfig(head.parts, classes=0 if found is None else len(tensors[found])),
    )


def _preprocessing(kind: str, processor: Mapping[str, Any] | None, native: Size) -> Preprocessing:
    if processor is None:  # what the type's published checkpoints come with
        if kind == "vit":
            return Preprocessing(native, "squash", 1.0, "bilinear")
        return Preprocessing(native, "crop", 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    resized: int | Size = _processor_size(processor.get("size", 224))
    if kind.startswith("dinov2") and isinstance(
        processor.get("size"), int
    ):  # its processor's one number is the shortest edge
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


_NAMES = {
    "disk": {
        "block": "encoder.layer.{l}",
        "qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attention.out": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    "5": {
        "block": "layers.{l}",
        "qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attention.out": "attention.o_proj",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
}
"""What a block's parts are called in files, and by transformers 5 in memory."""


def naming(kind: str, config: ViTConfig, prefix: str, layout: str) -> list[Rule]:
    """How a model type's names map to ours: as on ``disk``, or as transformers ``5`` has them in memory."""
    names: dict[str, Any] = dict(_NAMES[layout])
    if kind.startswith("dinov2"):
        names |= {"block": "encoder.layer.{l}", "norm1": "norm1", "norm2": "norm2"}
        names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    halves: tuple[str, ...] = ()
    if config.encoder.mlp == "swiglu":
        names |= {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
    if config.encoder.mlp == "swiglu" and layout == "5":
        halves, names["mlp.fc2"] = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
        del names["mlp.fc1"]
    ours, theirs = "encoder.blocks.{l}", prefix + names.pop("block")
    tokens = {"class": "cls_token", "distillation": "distillation_token", "register": "register_tokens"}
    kinds = dict.fromkeys(config.tokens)
    rules = [
        *same("patches.projection", f"{prefix}embeddings.patch_embeddings.projection"),
        Rule(("tokens",), tuple(f"{prefix}embeddings.{tokens[token]}" for token in kinds), TOKENS),
        Rule(("position.tokens", "position.grid"), (f"{prefix}embeddings.position_embeddings",), TABLE),
        *same("norm", f"{prefix}layernorm"),
    ]
    qkv = names.pop("qkv")
    for tensor in ("weight", "bias") if config.encoder.qkv_bias else ("weight",):
        parts = tuple(f"{theirs}.{part}.{tensor}" for part in qkv)
        rules.append(Rule((f"{ours}.attention.qkv.{tensor}",), parts, stacked(3)))
    for tensor in ("weight", "bias") if halves else ():
        parts = tuple(f"{theirs}.{half}.{tensor}" for half in halves)
        rules.append(Rule((f"{ours}.mlp.fc1.{tensor}",), parts, stacked(2)))
    for our_name, their_name in names.items():
        rules += same(f"{ours}.{our_name}", f"{theirs}.{their_name}")
    if kind.startswith("dinov2"):
        rules += [Rule((f"{ours}.scale{i}.scale",), (f"{theirs}.layer_scale{i}.lambda1",), SAME) for i in (1, 2)]
    if config.head.parts == ("class", "distillation"):
        rules += averaged_heads("cls_classifier", "distillation_classifier")
    elif config.head.classes:
        rules += same("classifier", "classifier")
    return rules


def _settings(kind: str, card: ModelCard) -> dict[str, Any]:
    """A ``config.json``."""
    config = transformer(card.architecture, "transformers")
    encoder = config.encoder
    settings: dict[str, Any] = {
        "architectures": [
            TYPES[kind] if config.head.classes else TYPES[kind].replace("ForImageClassification", "Model")
        ],
        "model_type": kind,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "hidden_act": "gelu_pytorch_tanh" if encoder.mlp == "gelu-tanh" else "gelu",
        "layer_norm_eps": encoder.norm_eps,
        "qkv_bias": encoder.qkv_bias,
        "image_size": _number_or_pair(config.image_size),
        "patch_size": _number_or_pair(config.patch),
        "num_channels": config.channels,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if kind.startswith("dinov2"):
        settings |= {"mlp_ratio": _mlp_ratio(config), "layerscale_value": encoder.layer_scale}
        settings |= {"use_swiglu_ffn": encoder.mlp == "swiglu"}
    else:
        settings["intermediate_size"] = encoder.mlp_width
    if config.registers:
        settings["num_register_tokens"] = config.registers
    if config.head.classes:
        names = card.class_names or tuple(f"LABEL_{label}" for label in range(config.head.classes))
        settings["id2label"] = {str(label): name for label, name in enumerate(names)}
        settings["label2id"] = {name: label for label, name in enumerate(names)}
    return settings


def _number_or_pair(size: Size) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _mlp_ratio(config: ViTConfig) -> int | float:
    """The ratio from which DINOv2's classes compute the MLP's width.

    Raises:
        UserError: none gives it.
    """
    width, hidden = config.encoder.width, config.encoder.mlp_width
    if config.encoder.mlp == "swiglu":  # they round two thirds of it up to a multiple of 8
        hidden = -(-hidden * 3 // 2)
    for ratio in (hidden // width, hidden / width, (hidden + 0.5) / width):
        found = int(width * ratio)
        if config.encoder.mlp == "swiglu":
            found = (int(found * 2 / 3) + 7) // 8 * 8
        if found == config.encoder.mlp_width:
            return ratio
    raise UserError(f"transformers' DINOv2 cannot have an MLP {config.encoder.mlp_width} wide: convert it to vitrail.")


def _processor(how: Preprocessing) -> dict[str, Any]:
    """A ``preprocessor_config.json``.

    Raises:
        UserError: transformers has no such preprocessing.
    """
    height, width = how.size
    common = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
        "resample": next(number for number, name in _PIL.items() if name == how.interpolation),
    }
    if how.fit == "squash" and how.crop_fraction == 1.0:
        return {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}, **common}
    edge = round(height / how.crop_fraction)
    if how.fit == "squash" or height != width or height / edge != how.crop_fraction:
        raise UserError(
            f"transformers has no preprocessing that gives {size_text(how.size)} pixels by {how.fit} at a crop "
            f"fraction of {how.crop_fraction:g}: it crops squares from a whole number of pixels; convert to vitrail."
        )
    return {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": edge},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_convert_rgb": True,
        **common,
    }
