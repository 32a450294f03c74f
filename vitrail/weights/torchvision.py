"""The names of torchvision: the state dicts of its ``vit_*``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

from torch import Tensor

from vitrail.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIZES,
    EncoderConfig,
    HeadConfig,
    ModelCard,
    PositionConfig,
    Preprocessing,
    ViTConfig,
    suggestion,
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
    same,
    sayable,
    translate_back,
)
from vitrail.weights.store import write_tensors

_ARCHITECTURES = {"vit_b_16": "B", "vit_b_32": "B", "vit_l_16": "L", "vit_l_32": "L", "vit_h_14": "H"}
_PUBLISHED = {SIZES[size][1]: SIZES[size][3] for size in ("B", "L", "H")}
"""Heads of the models torchvision has weights of, by width."""


class Torchvision(TwoWay):
    """State dicts of ``torchvision.models.VisionTransformer``, written as ``.safetensors``.

    They hold neither heads (torchvision's own B, L and H are known by their widths) nor preprocessing (that of its
    IMAGENET1K_V1 weights is taken). Images are square there.
    """

    name = "torchvision"
    suffix = ".safetensors"
    lost = ("class names", "preprocessing", "the way positions are resampled", "temperature")

    def claims(self, found: Found) -> bool:
        """By the name of the patches' kernel."""
        return found.settings is None and "conv_proj.weight" in found.tensors and "class_token" in found.tensors

    def read(self, found: Found) -> Checkpoint:
        """See ``Dialect.read``; sizes that torchvision has no weights of need ``heads``."""
        tensors = found.tensors
        kernel, mlp = tensors["conv_proj.weight"], tensors.get("encoder.layers.encoder_layer_0.mlp.0.bias")
        table = tensors.get("encoder.pos_embedding")
        if table is None or mlp is None or kernel.dim() != 4 or table.dim() != 3:
            raise UserError(f"{found.name} lacks torchvision's positions or first block: it is incomplete.")
        width, _, patch, _ = kernel.shape
        classifier, prelogits = tensors.get("heads.head.bias"), tensors.get("heads.pre_logits.bias")
        side = isqrt(table.shape[1] - 1) * patch
        architecture = ViTConfig(
            encoder=EncoderConfig(
                layers=len({m[1] for name in tensors if (m := re.search(r"encoder_layer_(\d+)\.", name))}),
                width=width,
                heads=_heads(found, width),
                mlp_width=len(mlp),
                norm_eps=1e-6,
            ),
            patch=(patch, patch),
            image_size=(side, side),
            channels=kernel.shape[1],
            position=PositionConfig(resampling="bicubic-corner"),
            head=HeadConfig(
                classes=0 if classifier is None else len(classifier),
                prelogits=None if prelogits is None else len(prelogits),
            ),
        )
        return Checkpoint(
            architecture=architecture,
            preprocessing=Preprocessing((side, side), "crop", 0.875, "bilinear", IMAGENET_MEAN, IMAGENET_STD),
            class_names=(),
            provenance={
                **found.provenance,
                "dialect": "torchvision",
                "assumed": f"{architecture.encoder.heads} heads, epsilon 1e-6, preprocessing of IMAGENET1K_V1",
            },
            tensors=tensors,
            rules=_rules(architecture),
        )

    def write(self, card: ModelCard, tensors: Mapping[str, Tensor], path: Path) -> None:
        """See ``TwoWay.write``: a state dict that ``load_state_dict`` takes, as safetensors."""
        config = sayable("torchvision's ViT", _WORDS, card.architecture)
        write_tensors(path, translate_back(_rules(config), config, tensors), {"format": "pt"})


_WORDS = {
    "an MLP of kind": ("gelu",),
    "a LayerNorm epsilon of": (1e-6,),
    "LayerScale:": (False,),
    "biases of queries, keys and values:": (True,),
    "learned tokens": (("class",),),
    "register tokens:": (False,),
    "positions of kind": ("learned-1d",),
    "positions at": ("stem",),
    "positions of the learned tokens:": (True,),
    "a head on": (("class",),),
    "a head that sees layers from the last:": (1,),
    "a last LayerNorm on": ("tokens",),
    "a classifier:": (True,),
    "a ResNet before the patches:": (False,),
    "channels:": (3,),
    "a square image and patch:": (True,),
}


def _heads(found: Found, width: int) -> int:
    name = found.architecture
    if name is not None and name not in _ARCHITECTURES:
        raise UserError(f"torchvision has no architecture {name!r}{suggestion(name, _ARCHITECTURES)}.")
    heads = found.heads or (SIZES[_ARCHITECTURES[name]][3] if name else _PUBLISHED.get(width))
    if heads is None:
        raise UserError(
            f"{found.name} is a state dict of torchvision's, which does not say how many heads the model has, and none "
            f"of torchvision's own is {width} wide: pass the number of heads."
        )
    return heads


def _rules(config: ViTConfig) -> list[Rule]:
    ours, theirs = "encoder.blocks.{l}", "encoder.layers.encoder_layer_{l}"
    names = {"norm1": "ln_1", "attention.out": "self_attention.out_proj", "norm2": "ln_2"}
    names |= {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}
    rules = [
        *same("patches.projection", "conv_proj"),
        Rule(("tokens",), ("class_token",), TOKENS),
        Rule(("position.tokens", "position.grid"), ("encoder.pos_embedding",), TABLE),
        *same("norm", "encoder.ln"),
    ]
    for kind in ("weight", "bias"):
        rules.append(Rule((f"{ours}.attention.qkv.{kind}",), (f"{theirs}.self_attention.in_proj_{kind}",), SAME))
    for our_name, their_name in names.items():
        rules += same(f"{ours}.{our_name}", f"{theirs}.{their_name}")
    if config.head.prelogits is not None:
        rules += same("prelogits", "heads.pre_logits")
    if config.head.classes:
        rules += same("classifier", "heads.head")
    return rules
