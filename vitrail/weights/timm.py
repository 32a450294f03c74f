"""The names and settings of timm: ``vit_*`` and ``deit_*`` with learned positions, and its DINOv2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIZES,
    EncoderConfig,
    HeadConfig,
    MLPKind,
    ModelCard,
    Part,
    PositionConfig,
    Preprocessing,
    Size,
    Token,
    ViTConfig,
    parse_size,
    registered,
    suggestion,
    transformer,
)
from vitrail.errors import UserError
from vitrail.weights.dialect import (
    GRID,
    NOTHING,
    SAME,
    TABLE,
    TOKENS,
    Checkpoint,
    Found,
    Rule,
    TwoWay,
    averaged_heads,
    same,
    sayable,
    translate_back,
)
from vitrail.weights.store import write_json, write_tensors
from vitrail.weights.timm_card import (
    arguments_of,
    class_names_of,
    classes_of,
    preprocessing_of,
    pretrained_of,
    settings_of,
)

_SIZE_NAMES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
_NAME = re.compile(
    r"(?P<family>vit|deit)_(?P<size>tiny|small|base|large|huge|giant)(?P<distilled>_distilled)?"
    r"_patch(?P<patch>\d+)(_reg(?P<registers>\d+))?(?P<dinov2>_dinov2)?(_(?P<image>\d+))?"
)
_KNOWN = [f"vit_{size}_patch16_224" for size in _SIZE_NAMES if size != "giant"] + [
    f"vit_{size}_patch14_{kind}" for kind in ("dinov2", "reg4_dinov2") for size in ("small", "base", "large", "giant")
]
_GELU: dict[str, MLPKind] = {"gelu": "gelu", "gelu_tanh": "gelu-tanh"}
_POOLING: dict[str, tuple[Part, ...]] = {"token": ("class",), "": ("class",), "avg": ("mean",)}
# Arguments of timm's constructor that are read here, and those of no effect on a trained model's answers.
_READ = (
    *("num_classes", "in_chans", "global_pool", "img_size", "patch_size", "embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "qkv_bias", "init_values", "class_token", "reg_tokens", "no_embed_class", "fc_norm", "act_layer"),
)
_IDLE = ("dynamic_img_size", "drop_rate", "drop_path_rate", "pos_drop_rate", "proj_drop_rate", "weight_init")


class Timm(TwoWay):
    """A folder that ``timm.create_model("local-dir:...")`` takes, a repository of the hub, or a bare state dict."""

    name = "timm"
    lost = ("the way positions are resampled", "temperature")

    def claims(self, found: Found) -> bool:
        """By ``architecture`` in a ``config.json``, or by the names of tensors, which others use too."""
        if found.settings is not None:
            return "architecture" in found.settings
        return "patch_embed.proj.weight" in found.tensors

    def read(self, found: Found) -> Checkpoint:
        """See ``Dialect.read``; a bare state dict needs ``architecture``."""
        settings = found.settings
        if settings is None:
            if found.architecture is None:
                raise UserError(
                    f"{found.name} is a state dict in names that timm, DINO, DINOv2, MAE and MoCo v3 share, which do "
                    "not say how many heads the model has (MoCo v3's S has 12, timm's 6), its epsilon or what grid its "
                    "positions stand for: pass the architecture, such as vit_base_patch16_224, dino_vits16, "
                    "dinov2_vitb14, mae_vit_base_patch16 or moco_v3_vit_small."
                )
            settings = {"architecture": found.architecture}
        name = str(settings["architecture"])
        try:
            return _understand(name, settings, found)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"The configuration of this {name} is incomplete or garbled at {error}.") from None

    def write(self, card: ModelCard, tensors: Mapping[str, Tensor], path: Path) -> None:
        """See ``TwoWay.write``: ``config.json`` with the constructor's arguments, and ``model.safetensors``."""
        config = transformer(card.architecture, "timm's dialect")
        words = dict(_WORDS)
        if config.registers:  # which have positions there, as the class token then has
            words["positions of the learned tokens:"] = (False,)
        if "distillation" in config.tokens:
            words["a head on"] = (("class", "distillation"),)
        sayable("timm", words, config)
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / "model.safetensors", translate_back(rules(config), config, tensors), {"format": "pt"})
        write_json(path / "config.json", _settings(card))


_WORDS: dict[str, tuple[Any, ...]] = {
    "an MLP of kind": ("gelu", "gelu-tanh"),
    "a LayerNorm epsilon of": (1e-6,),
    "learned tokens": (("class",), ("class", "distillation"), ()),
    "positions of kind": ("learned-1d",),
    "positions at": ("stem",),
    "a head on": (("class",), ("class", "distillation"), ("mean",)),
    "a head that sees layers from the last:": (1,),
    "pre-logits:": (False,),
    "a ResNet before the patches:": (False,),
}


def _understand(name: str, settings: Mapping[str, Any], found: Found) -> Checkpoint:
    arguments = arguments_of(name, settings, (*_READ, *_IDLE))
    pretrained = pretrained_of(settings)
    match, tensors = parse_name(name), found.tensors
    size = _SIZE_NAMES[match["size"]]
    layers, width, mlp_width, heads = SIZES[size]
    if "embed_dim" in arguments or "mlp_ratio" in arguments:
        width = int(arguments.get("embed_dim", width))
        hidden = int(width * arguments.get("mlp_ratio", 4.0))
        mlp_width = hidden // 2 if size == "g" else hidden  # SwiGLU's two halves count as one layer there
    activation = arguments.get("act_layer") or "gelu"
    if activation not in _GELU:
        raise UserError(f"This {name} has the activation {activation!r}; Vitrail's encoder has {' and '.join(_GELU)}.")
    pooling = str(settings.get("global_pool", arguments.get("global_pool", "token")))
    if pooling not in _POOLING:
        raise UserError(f"This {name} pools by {pooling!r}; Vitrail reads timm's 'token' and 'avg'.")
    classes = classes_of(name, settings, tensors.get("head.weight"))
    distilled = match["distilled"] is not None
    registers = int(arguments.get("reg_tokens", 0) or match["registers"] or 0)
    tokens: tuple[Token, ...] = ("class",) if arguments.get("class_token", True) else ()
    tokens += ("distillation",) if distilled else ()
    # timm gives registers positions too unless no special token has any, which is how its DINOv2 is made.
    bare = bool(arguments.get("no_embed_class", registers > 0 and match["dinov2"]))
    if registers and not bare:
        raise UserError(f"This {name} has positions for its register tokens, which Vitrail's registers have not.")
    native = _native_size(match, arguments, pretrained)
    architecture = ViTConfig(
        encoder=EncoderConfig(
            layers=int(arguments.get("depth", layers)),
            width=width,
            heads=int(arguments.get("num_heads", heads)),
            mlp_width=mlp_width,
            mlp="swiglu" if size == "g" else _GELU[activation],
            norm_eps=1e-6,
            qkv_bias=bool(arguments.get("qkv_bias", True)),
            layer_scale=arguments.get("init_values", 1e-5 if match["dinov2"] else None),
        ),
        patch=parse_size(arguments.get("patch_size", int(match["patch"]))),
        image_size=native,
        channels=int(arguments.get("in_chans", 3)),
        tokens=tokens + registered(registers),
        position=PositionConfig(resampling="bicubic-antialias", special=not (bare and tokens)),
        head=HeadConfig(
            parts=("class", "distillation") if distilled else _POOLING[pooling],
            norm="pooled" if "fc_norm.weight" in tensors else "tokens",
            classes=classes,
        ),
    )
    imagenet = match["family"] == "deit" or match["dinov2"]
    usual = Preprocessing(
        native,
        crop_fraction=1.0 if match["dinov2"] else 0.9,
        mean=IMAGENET_MEAN if imagenet else (0.5, 0.5, 0.5),
        std=IMAGENET_STD if imagenet else (0.5, 0.5, 0.5),
    )
    return Checkpoint(
        architecture=architecture,
        preprocessing=preprocessing_of(pretrained, usual),
        class_names=class_names_of(pretrained, classes),
        provenance={**found.provenance, "dialect": "timm", "architecture": name},
        tensors=tensors,
        rules=rules(architecture),
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


def rules(config: ViTConfig) -> list[Rule]:
    """timm's names, most of which the original DINO, DINOv2, MAE and MoCo v3 use as well."""
    ours, theirs = "encoder.blocks.{l}", "blocks.{l}"
    tokens = {"class": "cls_token", "distillation": "dist_token", "register": "reg_token"}
    kinds = tuple(dict.fromkeys(config.tokens))
    names = {
        "attention.out": "attn.proj",
        "norm1": "norm1",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    found = [
        *same("patches.projection", "patch_embed.proj"),
        Rule(("tokens",), tuple(tokens[kind] for kind in kinds), TOKENS if kinds else NOTHING),
        *(
            [Rule(("position.tokens", "position.grid"), ("pos_embed",), TABLE)]
            if config.positioned
            else [Rule(("position.tokens",), (), NOTHING), Rule(("position.grid",), ("pos_embed",), GRID)]
        ),
        *same("norm", "fc_norm" if config.head.norm == "pooled" else "norm"),
        *same(f"{ours}.attention.qkv", f"{theirs}.attn.qkv", _kinds(config)),
    ]
    for our_name, their_name in names.items():
        found += same(f"{ours}.{our_name}", f"{theirs}.{their_name}")
    if config.encoder.layer_scale is not None:
        found += [Rule((f"{ours}.scale{i}.scale",), (f"{theirs}.ls{i}.gamma",), SAME) for i in (1, 2)]
    if config.head.classes and "distillation" in config.head.parts:
        found += averaged_heads("head", "head_dist")
    elif config.head.classes:
        found += same("classifier", "head")
    return found


def _kinds(config: ViTConfig) -> tuple[str, ...]:
    return ("weight", "bias") if config.encoder.qkv_bias else ("weight",)


def _settings(card: ModelCard) -> dict[str, Any]:
    """A ``config.json``: the nearest architecture by name, and every argument in which the model departs from it."""
    config = transformer(card.architecture, "timm's dialect")
    encoder, head = config.encoder, config.head
    pooling = "avg" if head.parts == ("mean",) else "token"
    name = "deit_base_distilled_patch16_224" if "distillation" in config.tokens else "vit_base_patch16_224"
    if encoder.mlp == "swiglu":
        name = "vit_giant_patch14_dinov2"
    arguments: dict[str, Any] = {
        "img_size": list(config.image_size),
        "patch_size": config.patch[0] if config.patch[0] == config.patch[1] else list(config.patch),
        "in_chans": config.channels,
        "embed_dim": encoder.width,
        "depth": encoder.layers,
        "num_heads": encoder.heads,
        "mlp_ratio": _ratio(encoder.width, encoder.mlp_width * (2 if encoder.mlp == "swiglu" else 1)),
        "qkv_bias": encoder.qkv_bias,
        "init_values": encoder.layer_scale,
        "class_token": "class" in config.tokens,
        "reg_tokens": config.registers,
        "no_embed_class": not config.position.special or not config.tokens,
        "fc_norm": head.norm == "pooled",
        "global_pool": pooling,
        **({"act_layer": "gelu_tanh"} if encoder.mlp == "gelu-tanh" else {}),
    }
    return settings_of(card, name, pooling, arguments, "patch_embed.proj", "head")


def _ratio(width: int, hidden: int) -> float:
    """The quotient from which timm gets ``hidden`` back, which it rounds down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
