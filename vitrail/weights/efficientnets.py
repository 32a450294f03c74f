"""The names of EfficientNet: torchvision's state dicts, and timm's ``efficientnet_b*``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vitrail.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    EfficientNetConfig,
    ModelCard,
    Preprocessing,
    efficientnet,
    suggestion,
)
from vitrail.efficientnet import SCALED
from vitrail.errors import UserError
from vitrail.weights.dialect import Checkpoint, Found, Rule, TwoWay, same, translate_back
from vitrail.weights.store import write_json, write_tensors
from vitrail.weights.timm_card import (
    arguments_of,
    class_names_of,
    classes_of,
    preprocessing_of,
    pretrained_of,
    settings_of,
)

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_FED = {"B0": (224, 256), "B1": (240, 256), "B2": (288, 288), "B3": (300, 320), "B4": (380, 384)}
_FED |= {"B5": (456, 456), "B6": (528, 528), "B7": (600, 600)}
"""Pixels of the crop, and of the shorter side before it, for torchvision's IMAGENET1K_V1 weights."""
NAME = "efficientnet_{}"
"""Of an architecture in both libraries."""


class TorchvisionEfficientNet(TwoWay):
    """State dicts of ``torchvision.models.EfficientNet``, written as ``.safetensors``.

    Which of B0 to B7 it is, shapes say; preprocessing that of the IMAGENET1K_V1 weights is taken for.
    """

    name = "torchvision"
    of = (EfficientNetConfig,)
    suffix = ".safetensors"
    lost = ("class names", "preprocessing", "temperature")

    def claims(self, found: Found) -> bool:
        """By the name of the first block's squeeze, which EfficientNetV2 has not."""
        return found.settings is None and "features.1.0.block.1.fc1.weight" in found.tensors

    def read(self, found: Found) -> Checkpoint:
        """See ``Dialect.read``."""
        tensors, bias = found.tensors, found.tensors.get("classifier.1.bias")
        places = (re.match(r"features\.(\d+)\.(\d+)\.block\.", name) for name in tensors)
        units = Counter(int(stage) for stage, _ in {(m[1], m[2]) for m in places if m})
        scale = _scale(found, [units[stage] for stage in sorted(units)], _outputs(tensors, "features.8.0.weight"))
        config = efficientnet(f"EfficientNet-{scale}", classes=0 if bias is None else len(bias))
        crop, side = _FED[scale]
        config = config.at((crop, crop))
        return Checkpoint(
            architecture=config,
            preprocessing=Preprocessing((crop, crop), "crop", crop / side, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
            class_names=(),
            provenance={
                **found.provenance,
                "dialect": "torchvision",
                "assumed": f"{scale}'s dropout and BatchNorm, preprocessing of IMAGENET1K_V1",
            },
            tensors=tensors,
            rules=_torchvision(config),
        )

    def write(self, card: ModelCard, tensors: Mapping[str, Tensor], path: Path) -> None:
        """See ``TwoWay.write``: a state dict that ``load_state_dict`` takes, as safetensors."""
        config, _ = scale_of("torchvision", card.architecture)
        write_tensors(path, translate_back(_torchvision(config), config, tensors), {"format": "pt"})


_READ = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate")


class TimmEfficientNet(TwoWay):
    """timm's ``efficientnet_b0`` to ``b7``: a folder, a repository of the hub, or a bare state dict.

    Those called ``tf_efficientnet_*`` have the same tensors, but pad their borders otherwise, and are refused.
    """

    name = "timm"
    of = (EfficientNetConfig,)
    lost = ("temperature",)

    def claims(self, found: Found) -> bool:
        """By ``architecture`` in a ``config.json``, or by the names of tensors."""
        if found.settings is not None:
            return "efficientnet" in str(found.settings.get("architecture", ""))
        return "conv_stem.weight" in found.tensors and "blocks.0.0.conv_dw.weight" in found.tensors

    def read(self, found: Found) -> Checkpoint:
        """See ``Dialect.read``; a bare state dict needs ``architecture``."""
        settings, tensors = found.settings, found.tensors
        if settings is None:
            if found.architecture is None:
                raise UserError(
                    f"{found.name} is a state dict in timm's names, which do not say how borders are padded "
                    "(efficientnet_b0 and tf_efficientnet_b0 differ in nothing else): pass the architecture."
                )
            settings = {"architecture": found.architecture}
        name = str(settings["architecture"])
        scale = name.split(".")[0].removeprefix("efficientnet_").upper()
        if not name.startswith("efficientnet_") or scale not in SCALED:
            known = [NAME.format(one.lower()) for one in SCALED]
            why = ", whose borders are padded as TensorFlow's are" if name.startswith("tf_") else ""
            raise UserError(f"Vitrail does not read timm's architecture {name!r}{why}{suggestion(name, known)}.")
        try:
            arguments_of(name, settings, _READ)
            pretrained = pretrained_of(settings)
            classes = classes_of(name, settings, tensors.get("classifier.weight"))
            config = efficientnet(f"EfficientNet-{scale}", classes=classes)
            usual = Preprocessing(config.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
            how = preprocessing_of(pretrained, usual)
            names = class_names_of(pretrained, classes)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"The configuration of this {name} is incomplete or garbled at {error}.") from None
        config = replace(config.at(how.size), norm_eps=1e-5, norm_momentum=0.1)  # of all scales there
        return Checkpoint(
            architecture=config,
            preprocessing=how,
            class_names=names,
            provenance={**found.provenance, "dialect": "timm", "architecture": name},
            tensors=tensors,
            rules=_timm(config),
        )

    def write(self, card: ModelCard, tensors: Mapping[str, Tensor], path: Path) -> None:
        """See ``TwoWay.write``: ``config.json`` and ``model.safetensors``."""
        config, scale = scale_of("timm", card.architecture, 1e-5)
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / "model.safetensors", translate_back(_timm(config), config, tensors), {"format": "pt"})
        name = NAME.format(scale.lower())
        write_json(path / "config.json", settings_of(card, name, "avg", {}, "conv_stem", "classifier"))


def _outputs(tensors: Mapping[str, Tensor], name: str) -> int:
    return tensors[name].shape[0] if name in tensors and tensors[name].ndim else 0


def _scale(found: Found, units: list[int], width: int) -> str:
    """Which of B0 to B7 has so many blocks in its stages, and so many channels at last.

    Raises:
        UserError: none.
    """
    for scale in SCALED:
        config = efficientnet(f"EfficientNet-{scale}")
        if [stage.layers for stage in config.stages] == units and config.width == width:
            return scale
    raise UserError(
        f"{found.name} is an EfficientNet of {units} blocks that ends with {width} channels, which is none of "
        f"{', '.join(SCALED)}: Vitrail reads those."
    )


def scale_of(library: str, architecture: Architecture, eps: float | None = None) -> tuple[EfficientNetConfig, str]:
    """The configuration and its scale, if a library says all of it.

    Args:
        eps: BatchNorm's there; None: what each scale has in torchvision.

    Raises:
        UserError: it does not.
    """
    assert isinstance(architecture, EfficientNetConfig)
    scaled = (architecture.times_wide, architecture.times_deep)
    scale = next((name for name, (wide, deep, *_) in SCALED.items() if (wide, deep) == scaled), None)
    if scale is None:
        raise UserError(
            f"{library} has no words for an EfficientNet {scaled[0]:g} times as wide and {scaled[1]:g} times as deep "
            f"as B0, only for {', '.join(SCALED)}: convert it to vitrail, which says everything."
        )
    only = efficientnet(f"EfficientNet-{scale}").norm_eps if eps is None else eps
    if architecture.norm_eps != only:
        raise UserError(
            f"{library} has no words for a BatchNorm epsilon of {architecture.norm_eps}, only for {only}: convert it "
            "to vitrail, which says everything."
        )
    return architecture, scale


def _blocks(config: EfficientNetConfig) -> Iterator[tuple[int, int, bool]]:
    """Stage and block, counted from 0, and whether the block has an expansion."""
    for number, stage in enumerate(config.stages):
        for layer in range(stage.layers):
            yield number, layer, stage.expansion != 1


def _torchvision(config: EfficientNetConfig) -> list[Rule]:
    """The same tree, under another root."""
    last = len(config.stages) + 1
    rules = [rule for place in (0, last) for rule in _named(f"trunk.{place}", f"features.{place}")]
    for stage, layer, expanded in _blocks(config):
        block = f"{stage + 1}.{layer}.block"
        ours, theirs = f"trunk.{block}", f"features.{block}"
        squeeze = 2 if expanded else 1
        for part in range(squeeze + 2):
            if part != squeeze:
                rules += _named(f"{ours}.{part}", f"{theirs}.{part}")
        rules += [*same(f"{ours}.{squeeze}.fc1", f"{theirs}.{squeeze}.fc1")]
        rules += [*same(f"{ours}.{squeeze}.fc2", f"{theirs}.{squeeze}.fc2")]
    return rules + (same("classifier", "classifier.1") if config.head.classes else [])


def _named(ours: str, theirs: str) -> list[Rule]:
    return [*same(f"{ours}.0", f"{theirs}.0", ("weight",)), *same(f"{ours}.1", f"{theirs}.1", NORM)]


def _timm(config: EfficientNetConfig) -> list[Rule]:
    last = len(config.stages) + 1
    rules = _pair("trunk.0", "conv_stem", "bn1") + _pair(f"trunk.{last}", "conv_head", "bn2")
    for stage, layer, expanded in _blocks(config):
        ours, theirs = f"trunk.{stage + 1}.{layer}.block", f"blocks.{stage}.{layer}"
        convolutions = ("conv_pw", "conv_dw", "conv_pwl") if expanded else ("conv_dw", "conv_pw")
        squeeze = len(convolutions) - 1
        for number, name in enumerate(convolutions):
            place = number + (number == squeeze)  # the squeeze stands before the last
            rules += _pair(f"{ours}.{place}", f"{theirs}.{name}", f"{theirs}.bn{number + 1}")
        rules += same(f"{ours}.{squeeze}.fc1", f"{theirs}.se.conv_reduce")
        rules += same(f"{ours}.{squeeze}.fc2", f"{theirs}.se.conv_expand")
    return rules + (same("classifier", "classifier") if config.head.classes else [])


def _pair(ours: str, convolution: str, norm: str) -> list[Rule]:
    return [*same(f"{ours}.0", convolution, ("weight",)), *same(f"{ours}.1", norm, NORM)]
