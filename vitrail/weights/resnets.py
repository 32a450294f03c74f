"""The names of BiT's ResNets: in Google's ``.npz``, and in timm, whose ``resnetv2_*_bit`` hold the same weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitrail.config import Architecture, BiTConfig, HeadConfig, ModelCard, Preprocessing, ResNetConfig, suggestion
from vitrail.errors import UserError
from vitrail.resnet import DEPTHS
from vitrail.weights.dialect import KERNEL_LAST, SAME, Checkpoint, Found, Layout, Rule, TwoWay, same, translate_back
from vitrail.weights.store import write_json, write_tensors
from vitrail.weights.timm_card import (
    arguments_of,
    class_names_of,
    classes_of,
    preprocessing_of,
    pretrained_of,
    settings_of,
)

ONE_BY_ONE = Layout(lambda parts, _: [parts[0].flatten(1)], lambda parts, _: [parts[0][:, :, None, None]])
"""A dense layer as a convolution's kernel (D, C, 1, 1)."""
ONE_BY_ONE_LAST = Layout(lambda parts, _: [parts[0].flatten(0, 2).T], lambda parts, _: [parts[0].T[None, None]])
"""The same as (1, 1, C, D)."""


class GoogleBiT(TwoWay):
    """``.npz`` files of BiT's authors: ``BiT-M-R50x1.npz`` and the like.

    They say depth, width and classes. The code that goes with them has GroupNorm's epsilon of 1e-5, divides kernels by
    sqrt(var + 1e-10), and feeds pictures resized to a square, whose size the file does not say: 224 while pretraining,
    480 for those fine-tuned on ImageNet.
    """

    name = "google"
    of = (BiTConfig,)
    suffix = ".npz"
    lost = ("class names", "preprocessing", "temperature")

    def claims(self, found: Found) -> bool:
        """By the name of its first convolution."""
        return found.settings is None and "resnet/root_block/standardized_conv2d/kernel" in found.tensors

    def read(self, found: Found) -> Checkpoint:
        """See ``Dialect.read``."""
        root = found.tensors["resnet/root_block/standardized_conv2d/kernel"]  # (P, P, C, D)
        classified = found.tensors.get("resnet/head/conv2d/bias")
        places = (re.match(r"resnet/block(\d+)/unit(\d+)/", name) for name in found.tensors)
        config = _config(
            found, Counter(int(stage) for stage, _ in {(m[1], m[2]) for m in places if m}), tuple(root.shape)[::-1],
            1e-10, 0 if classified is None else len(classified),
        )  # fmt: skip
        return Checkpoint(
            architecture=config,
            preprocessing=Preprocessing(config.image_size, "squash", 1.0, "bilinear"),
            class_names=(),
            provenance={
                **found.provenance,
                "dialect": "google",
                "assumed": "epsilon 1e-5, kernels by sqrt(var + 1e-10), 224 pixels",
            },
            tensors=found.tensors,
            rules=_google(config),
        )

    def write(self, card: ModelCard, tensors: Mapping[str, Tensor], path: Path) -> None:
        """See ``TwoWay.write``."""
        config = _sayable("Google's .npz", card.architecture, 1e-10)
        theirs = translate_back(_google(config), config, tensors)
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **{name: tensor.numpy() for name, tensor in theirs.items()})


_NAME = re.compile(r"resnetv2_(?P<depth>\d+)x(?P<times>\d+)_bitm?")
_NAMED = ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
"""Depths and widths that timm has names for."""
_KNOWN = tuple(f"resnetv2_{depth}x{times}_bit" for depth, times in _NAMED)
_READ = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate")


class TimmBiT(TwoWay):
    """timm's ``resnetv2_*_bit``: a folder that ``timm.create_model("local-dir:...")`` takes, or a bare state dict."""

    name = "timm"
    of = (BiTConfig,)
    lost = ("temperature",)

    def claims(self, found: Found) -> bool:
        """By ``architecture`` in a ``config.json``, or by the names of tensors."""
        if found.settings is not None:
            return str(found.settings.get("architecture", "")).startswith("resnetv2_")
        return "stem.conv.weight" in found.tensors and "stages.0.blocks.0.norm3.weight" in found.tensors

    def read(self, found: Found) -> Checkpoint:
        """See ``Dialect.read``; a bare state dict says all that decides its answers."""
        settings = found.settings or {}
        name = str(settings.get("architecture") or found.architecture or _KNOWN[0])
        if _NAME.fullmatch(name.split(".")[0]) is None:
            raise UserError(f"Vitrail does not read timm's architecture {name!r}{suggestion(name, _KNOWN)}.")
        try:
            arguments_of(name, settings, _READ)
            pretrained = pretrained_of(settings)
            tensors = found.tensors
            places = (re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", tensor) for tensor in tensors)
            config = _config(
                found, Counter(int(stage) for stage, _ in {(m[1], m[2]) for m in places if m}),
                tuple(tensors["stem.conv.weight"].shape), 1e-8,
                classes_of(name, settings, tensors.get("head.fc.weight")),
            )  # fmt: skip
            how = preprocessing_of(pretrained, Preprocessing((224, 224), "crop", 0.875, "bilinear"))
            names = class_names_of(pretrained, config.head.classes)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"The configuration of this {name} is incomplete or garbled at {error}.") from None
        return Checkpoint(
            architecture=config.at(how.size),
            preprocessing=how,
            class_names=names,
            provenance={**found.provenance, "dialect": "timm"} | ({"architecture": name} if settings else {}),
            tensors=tensors,
            rules=_timm(config),
        )

    def write(self, card: ModelCard, tensors: Mapping[str, Tensor], path: Path) -> None:
        """See ``TwoWay.write``: ``config.json`` and ``model.safetensors``."""
        config = _sayable("timm", card.architecture, 1e-8)
        named = {(DEPTHS[depth], 64 * times): f"resnetv2_{depth}x{times}_bit" for depth, times in _NAMED}
        name = named.get((config.trunk.layers, config.trunk.width))
        if name is None:
            raise UserError(
                f"timm has no {config.summary} {config.trunk.width} wide at first, only {', '.join(_KNOWN)}: convert "
                "it to vitrail, which says everything."
            )
        arguments = {} if config.channels == 3 else {"in_chans": config.channels}
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / "model.safetensors", translate_back(_timm(config), config, tensors), {"format": "pt"})
        write_json(path / "config.json", settings_of(card, name, "avg", arguments, "stem.conv", "head.fc"))


def _config(found: Found, units: Counter[int], root: tuple[int, ...], eps: float, classes: int) -> BiTConfig:
    """From the units of each stage and the first kernel's shape (D, C, P, P).

    Raises:
        UserError: it is another kind of ResNet.
    """
    if len(root) != 4 or root[2:] != (7, 7) or not units:
        raise UserError(
            f"{found.name} is no ResNet that Vitrail can read: BiT's begin with a 7x7 convolution, and then come units."
        )
    trunk = ResNetConfig(tuple(units[stage] for stage in sorted(units)), root[0], "variance", eps, norm_eps=1e-5)
    return BiTConfig(trunk, channels=root[1], head=HeadConfig(("mean",), classes=classes))


def _sayable(library: str, config: Architecture, eps: float) -> BiTConfig:
    """The configuration, if a library says all of it.

    Raises:
        UserError: it does not; the first thing that it has no words for is named.
    """
    assert isinstance(config, BiTConfig)
    trunk = config.trunk
    facets: list[tuple[str, Any, Any]] = [
        ("a root of", config.root, "7x7"),
        ("kernels divided by their", trunk.standard, "variance"),
        ("an epsilon of standardising of", trunk.standard_eps, eps),
        ("a GroupNorm epsilon of", trunk.norm_eps, 1e-5),
    ]
    for what, value, only in facets:
        if value != only:
            raise UserError(
                f"{library} has no words for {what} {value}, only for {only}: convert it to vitrail, which says "
                "everything, or change the model first."
            )
    return config


def _units(config: BiTConfig) -> Iterator[tuple[int, int, str]]:
    """Stage and unit, counted from 0, and our name of it."""
    for stage, count in enumerate(config.trunk.layers):
        for unit in range(count):
            yield stage, unit, f"stages.{stage}.{unit}"


def _google(config: BiTConfig) -> list[Rule]:
    kernel = "standardized_conv2d/kernel"
    rules = [
        Rule(("root.weight",), (f"resnet/root_block/{kernel}",), KERNEL_LAST),
        *_norm("norm", "resnet/group_norm"),
    ]
    for stage, unit, ours in _units(config):
        theirs = f"resnet/block{stage + 1}/unit{unit + 1:02}"
        for number, part in enumerate("abc", 1):
            rules.append(Rule((f"{ours}.conv{number}.weight",), (f"{theirs}/{part}/{kernel}",), KERNEL_LAST))
            rules += _norm(f"{ours}.norm{number}", f"{theirs}/{part}/group_norm")
        if unit == 0:
            rules.append(Rule((f"{ours}.shortcut.weight",), (f"{theirs}/a/proj/{kernel}",), KERNEL_LAST))
    if config.head.classes:
        rules.append(Rule(("classifier.weight",), ("resnet/head/conv2d/kernel",), ONE_BY_ONE_LAST))
        rules.append(Rule(("classifier.bias",), ("resnet/head/conv2d/bias",), SAME))
    return rules


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule((f"{ours}.{one}",), (f"{theirs}/{other}",), SAME) for one, other in (("weight", "gamma"), ("bias", "beta"))
    ]


def _timm(config: BiTConfig) -> list[Rule]:
    rules = [*same("root", "stem.conv", ("weight",)), *same("norm", "norm")]
    for stage, unit, ours in _units(config):
        theirs = f"stages.{stage}.blocks.{unit}"
        for number in (1, 2, 3):
            rules += same(f"{ours}.conv{number}", f"{theirs}.conv{number}", ("weight",))
            rules += same(f"{ours}.norm{number}", f"{theirs}.norm{number}")
        if unit == 0:
            rules += same(f"{ours}.shortcut", f"{theirs}.downsample.conv", ("weight",))
    if config.head.classes:
        rules.append(Rule(("classifier.weight",), ("head.fc.weight",), ONE_BY_ONE))
        rules.append(Rule(("classifier.bias",), ("head.fc.bias",), SAME))
    return rules
