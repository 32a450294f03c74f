"""What a model is, without running it: its parts, its cost, what it is fed, where it came from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from vitrail.config import (
    Architecture,
    BiTConfig,
    EfficientNetConfig,
    ModelCard,
    Preprocessing,
    Size,
    ViTConfig,
    is_variant,
    parse_size,
    size_text,
)
from vitrail.config import architecture as named
from vitrail.cost import flops, inference_bytes, parameters, training_bytes, weight_bytes
from vitrail.record import to_dict
from vitrail.report.terminal import Show
from vitrail.tasks.classifier import download_progress
from vitrail.weights.load import load_weights
from vitrail.weights.report import LoadReport


@dataclass(frozen=True)
class Description:
    """A model's card and what follows from it."""

    card: ModelCard
    report: LoadReport | None
    """What happened to every tensor; None for a bare architecture."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        config = self.card.architecture
        return {
            **to_dict(self.card),
            "tokens": config.sequence,
            "grid": list(config.grid),
            "parameters": parameters(config),
            "flops": flops(config),
            "bytes": {
                "weights": weight_bytes(config),
                "inference": inference_bytes(config),
                "training": training_bytes(config),
            },
            "tensors": [{"tensor": fate.tensor, "what": fate.what, "note": fate.note} for fate in self.report or ()],
        }

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a person."""
        config, how, head = self.card.architecture, self.card.preprocessing, self.card.architecture.head
        rows = [
            *_own(config),
            ("parameters", f"{parameters(config):,}"),
            ("compute", f"{flops(config) / 1e9:.2f} GFLOP an image, a multiply-add counted as two"),
            (
                "memory, fp32",
                f"{_mebi(weight_bytes(config))} of weights; an image's activations: {_mebi(inference_bytes(config))} "
                f"at once when predicting, {_mebi(training_bytes(config))} kept when training",
            ),
        ]
        if head.classes:
            names = ", ".join(self.card.class_names[:6]) + (", ..." if len(self.card.class_names) > 6 else "")
            rows.append(("classes", f"{head.classes}: {names}" if names else f"{head.classes}, unnamed"))
        if self.report is None:
            return rows
        numbers = f"mean {_numbers(how.mean)}, deviation {_numbers(how.std)}"
        fit = f"{how.fit}, crop fraction {how.crop_fraction:g}, {how.interpolation}"
        rows += [
            ("preprocessing", f"{size_text(how.size)} by {fit}; {numbers}"),
            ("provenance", ", ".join(f"{name} {value}" for name, value in self.card.provenance.items()) or "unknown"),
            ("tensors", self.report.summary()),
        ]
        return rows


def show(
    model: str,
    *,
    resolution: int | str | Size | None = None,
    heads: int | None = None,
    architecture: str | None = None,
    quiet: bool = True,
) -> Description:
    """Describe a model from anywhere, or an architecture by name such as ``ViT-B/16``.

    Raises:
        UserError: the source is unknown, unreachable, damaged, or not a model Vitrail can build.
    """
    size = None if resolution is None else parse_size(resolution)
    if is_variant(model) and not os.path.exists(model):
        config = named(model, size)
        return Description(ModelCard(config, Preprocessing(config.image_size)), None)
    with download_progress(Show(quiet), model) as progress:
        loaded = load_weights(model, image_size=size, heads=heads, architecture=architecture, progress=progress)
    return Description(loaded.card, loaded.report)


def _own(config: Architecture) -> list[tuple[str, str]]:
    if isinstance(config, ViTConfig):
        return _transformer(config)
    rows = _resnet(config) if isinstance(config, BiTConfig) else _efficientnet(config)
    seen = f"{size_text(config.grid)} of {config.width} channels, of which the head sees the mean"
    return [*rows, ("images", _images(config)), ("map", seen)]


def _transformer(config: ViTConfig) -> list[tuple[str, str]]:
    encoder, position = config.encoder, config.position
    learned = ", ".join(config.tokens) or "none"
    scale = "" if encoder.layer_scale is None else ", LayerScale"
    return [
        ("layers", f"{encoder.layers} of width {encoder.width}, {encoder.heads} heads, MLP {encoder.mlp_width}"),
        ("details", f"{encoder.mlp}, LayerNorm epsilon {encoder.norm_eps:g}{scale}"),
        ("images", _images(config)),
        ("patches", f"{size_text(config.patch)}{_stem(config)}, a grid of {size_text(config.grid)}"),
        ("tokens", f"{config.sequence}: {config.sequence - len(config.tokens)} patches; learned: {learned}"),
        ("positions", f"{position.kind} ({position.place}), taken to another grid by {position.resampling}"),
        ("head", _head(config)),
    ]


def _resnet(config: BiTConfig) -> list[tuple[str, str]]:
    trunk = config.trunk
    return [
        ("units", f"{'-'.join(map(str, trunk.layers))}, pre-activation bottlenecks; the first {trunk.width} wide"),
        ("details", f"GroupNorm epsilon {trunk.norm_eps:g}, standardised kernels"),
        ("root", f"{config.root}{' and a maximum over 3x3' if config.root == '7x7' else ', stride 1'}"),
    ]


def _efficientnet(config: EfficientNetConfig) -> list[tuple[str, str]]:
    stages = "-".join(str(stage.layers) for stage in config.stages)
    scale = f"B0 {config.times_wide:g} times as wide and {config.times_deep:g} times as deep"
    return [
        ("blocks", f"{stages}, inverted bottlenecks with squeeze-and-excitation: {scale}"),
        ("details", f"BatchNorm epsilon {config.norm_eps:g}"),
    ]


def _images(config: Architecture) -> str:
    return f"{config.channels} channels, {size_text(config.image_size)} pixels"


def _stem(config: ViTConfig) -> str:
    if config.stem is None:
        return " pixels"
    return f" of the feature map of a ResNet {'-'.join(map(str, config.stem.layers))} at stride {config.stem.stride}"


def _head(config: ViTConfig) -> str:
    head = config.head
    layers = "the last layer" if head.layers == 1 else f"the last {head.layers} layers"
    before = "" if head.prelogits is None else f", pre-logits of {head.prelogits}"
    logits = f", {head.classes} logits" if head.classes else ", no classifier"
    return (
        f"{' and '.join(head.parts)} of {layers}, normalised {'before' if head.norm == 'tokens' else 'after'} pooling"
        + (before + logits)
    )


def _mebi(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
