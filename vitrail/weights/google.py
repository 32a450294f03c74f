"""The names of Google's own code (vision_transformer, big_vision's older files): a ``.npz`` of JAX arrays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.config import (
    EncoderConfig,
    HeadConfig,
    ModelCard,
    PositionConfig,
    Preprocessing,
    ResNetConfig,
    Size,
    ViTConfig,
)
from vitrail.errors import UserError
from vitrail.weights.dialect import (
    BATCHED,
    KERNEL_LAST,
    NOTHING,
    SAME,
    TABLE,
    TRANSPOSED,
    Checkpoint,
    Found,
    Layout,
    Parts,
    Rule,
    TwoWay,
    sayable,
    translate_back,
)

_BLOCK = "Transformer/encoderblock_{l}/"
_LAYOUTS = {
    "published": ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    "today": ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
}
"""What the parts of a block are called in the files that were published, and by the code of today."""


def _read_qkv(parts: Parts, config: ViTConfig) -> Parts:
    weights = [part.flatten(1).T for part in parts[:3]]  # (D, K, D/K) each -> (D, D)
    return [torch.cat(weights), torch.cat([part.flatten() for part in parts[3:]])]


def _write_qkv(parts: Parts, config: ViTConfig) -> Parts:
    D, K = config.encoder.width, config.encoder.heads
    weights = [part.T.reshape(D, K, D // K) for part in parts[0].chunk(3)]
    return [*weights, *(part.reshape(K, D // K) for part in parts[1].chunk(3))]


def _write_out(parts: Parts, config: ViTConfig) -> Parts:
    D, K = config.encoder.width, config.encoder.heads
    return [parts[0].T.reshape(K, D // K, D)]


QKV = Layout(_read_qkv, _write_qkv)
"""Three kernels (D, K, D/K) and three biases (K, D/K)."""
OUT = Layout(lambda parts, _: [parts[0].flatten(0, 1).T], _write_out)
"""A kernel (K, D/K, D)."""


class Google(TwoWay):
    """``.npz`` files as the paper's authors published them, and as their code writes them today.

    It holds shapes, and so the heads, but neither epsilon (1e-6), nor GELU (by tanh), nor the grid of the positions:
    a square number of them is a square grid, as all published ones are.
    """

    name = "google"
    suffix = ".npz"
    lost = ("class names", "preprocessing", "the way positions are resampled", "temperature")

    def claims(self, found: Found) -> bool:
        """By the name of its position table."""
        return found.settings is None and "Transformer/encoder_norm/scale" in found.tensors

    def read(self, found: Found) -> Checkpoint:
        """See ``Dialect.read``; a grid that is not square is the one of ``image_size``."""
        tensors = found.tensors
        table, kernel = _needed(found, "Transformer/posembed_input/pos_embedding"), _needed(found, "embedding/kernel")
        heads = _needed(found, f"Transformer/encoderblock_0/{_layout(tensors)[1]}/query/kernel")
        mlp = _needed(found, f"Transformer/encoderblock_0/{_layout(tensors)[3]}/Dense_0/kernel")
        classified, prelogits = tensors.get("head/bias"), tensors.get("pre_logits/bias")
        token = "cls" in tensors
        patch: Size = (kernel.shape[0], kernel.shape[1])
        stem = _stem(found)
        stride = 1 if stem is None else stem.stride
        architecture = ViTConfig(
            encoder=EncoderConfig(
                layers=len({m[1] for name in tensors if (m := re.match(r"Transformer/encoderblock_(\d+)/", name))}),
                width=kernel.shape[3],
                heads=heads.shape[1],
                mlp_width=mlp.shape[1],
                mlp="gelu-tanh",
                norm_eps=1e-6,
            ),
            patch=patch,
            image_size=_image_size(found, table.shape[1] - token, (patch[0] * stride, patch[1] * stride)),
            channels=kernel.shape[2] if stem is None else tensors["conv_root/kernel"].shape[2],
            stem=stem,
            tokens=("class",) if token else (),
            position=PositionConfig(resampling="bilinear-corner"),
            head=HeadConfig(
                parts=("class",) if token else ("mean",),
                classes=0 if classified is None else len(classified),
                prelogits=None if prelogits is None else len(prelogits),
            ),
        )
        size = architecture.image_size
        return Checkpoint(
            architecture=architecture,
            preprocessing=Preprocessing(size, "squash", 1.0, "bilinear"),
            class_names=(),
            provenance={**found.provenance, "dialect": "google", "assumed": "epsilon 1e-6, GELU by tanh"},
            tensors=tensors,
            rules=_rules(architecture, _layout(tensors)),
        )

    def write(self, card: ModelCard, tensors: Mapping[str, Tensor], path: Path) -> None:
        """See ``TwoWay.write``; the layout is the published files'."""
        config = sayable("Google's .npz", _WORDS, card.architecture)
        theirs = translate_back(_rules(config, _LAYOUTS["published"]), config, tensors)
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **{name: tensor.numpy() for name, tensor in theirs.items()})


_WORDS = {
    "an MLP of kind": ("gelu-tanh",),
    "a LayerNorm epsilon of": (1e-6,),
    "LayerScale:": (False,),
    "biases of queries, keys and values:": (True,),
    "learned tokens": (("class",), ()),
    "register tokens:": (False,),
    "positions of kind": ("learned-1d",),
    "positions at": ("stem",),
    "positions of the learned tokens:": (True,),
    "a head on": (("class",), ("mean",)),
    "a head that sees layers from the last:": (1,),
    "a last LayerNorm on": ("tokens",),
}


def _needed(found: Found, name: str) -> Tensor:
    if name not in found.tensors:
        raise UserError(f"{found.name} lacks the tensor {name}: it is incomplete, or no Vision Transformer.")
    return found.tensors[name]


def _layout(tensors: Mapping[str, Tensor]) -> tuple[str, str, str, str]:
    """What the parts of a block are called here."""
    today = any("/MlpBlock_0/" in name for name in tensors)
    return _LAYOUTS["today" if today else "published"]


def _image_size(found: Found, count: int, cell: Size) -> Size:
    """The resolution of ``count`` positions of ``cell`` pixels each."""
    side = isqrt(count)
    if side * side == count:
        return (side * cell[0], side * cell[1])
    asked = found.image_size
    if asked is None or (asked[0] // cell[0]) * (asked[1] // cell[1]) != count:
        raise UserError(
            f"{found.name} has positions for {count} patches, which is no square, and a .npz does not say which grid "
            "they are: pass the image size it was trained at, height x width."
        )
    return asked


def _stem(found: Found) -> ResNetConfig | None:
    """The ResNet before the patches of a hybrid, which standardises by w / (deviation + 1e-5)."""
    if "conv_root/kernel" not in found.tensors:
        return None
    units = {(int(m[1]), int(m[2])) for name in found.tensors if (m := re.match(r"block(\d+)/unit(\d+)/", name))}
    layers = Counter(block for block, _ in units)
    return ResNetConfig(
        tuple(layers[block] for block in sorted(layers)), width=found.tensors["conv_root/kernel"].shape[3]
    )


def _stem_rules(config: ResNetConfig) -> list[Rule]:
    rules = [Rule(("stem.root.weight",), ("conv_root/kernel",), KERNEL_LAST), *_norm("stem.norm", "gn_root")]
    for stage, units in enumerate(config.layers):
        for unit in range(units):
            ours, theirs = f"stem.stages.{stage}.{unit}.", f"block{stage + 1}/unit{unit + 1}/"
            for number in (1, 2, 3):
                rules.append(Rule((f"{ours}conv{number}.weight",), (f"{theirs}conv{number}/kernel",), KERNEL_LAST))
                rules += _norm(f"{ours}norm{number}", f"{theirs}gn{number}")
            if unit == 0:  # where widths or sizes differ
                rules.append(Rule((f"{ours}shortcut.0.weight",), (f"{theirs}conv_proj/kernel",), KERNEL_LAST))
                rules += _norm(f"{ours}shortcut.1", f"{theirs}gn_proj")
    return rules


def _rules(config: ViTConfig, layout: tuple[str, str, str, str]) -> list[Rule]:
    norm1, attention, norm2, mlp = (_BLOCK + part for part in layout)
    ours = "encoder.blocks.{l}."
    kinds = [f"{attention}/{part}/{kind}" for kind in ("kernel", "bias") for part in ("query", "key", "value")]
    table = "Transformer/posembed_input/pos_embedding"
    positions = Rule(("position.tokens", "position.grid"), (table,), TABLE)
    rules = [
        *([] if config.stem is None else _stem_rules(config.stem)),
        *_layer("patches.projection", "embedding", KERNEL_LAST),
        Rule(("tokens",), ("cls",), BATCHED) if config.tokens else Rule(("tokens",), (), NOTHING),
        positions,
        *_norm(ours + "norm1", norm1),
        Rule((ours + "attention.qkv.weight", ours + "attention.qkv.bias"), tuple(kinds), QKV),
        *_layer(ours + "attention.out", f"{attention}/out", OUT),
        *_norm(ours + "norm2", norm2),
        *_layer(ours + "mlp.fc1", f"{mlp}/Dense_0", TRANSPOSED),
        *_layer(ours + "mlp.fc2", f"{mlp}/Dense_1", TRANSPOSED),
        *_norm("norm", "Transformer/encoder_norm"),
    ]
    if config.head.prelogits is not None:
        rules += _layer("prelogits", "pre_logits", TRANSPOSED)
    if config.head.classes:
        rules += _layer("classifier", "head", TRANSPOSED)
    return rules


def _layer(ours: str, theirs: str, layout: Layout) -> list[Rule]:
    return [
        Rule((f"{ours}.weight",), (f"{theirs}/kernel",), layout),
        Rule((f"{ours}.bias",), (f"{theirs}/bias",), SAME),
    ]


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule((f"{ours}.{one}",), (f"{theirs}/{other}",), SAME) for one, other in (("weight", "scale"), ("bias", "bias"))
    ]
