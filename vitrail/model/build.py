"""config -> model: the only place that picks classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vitrail.config import Architecture, BiTConfig, EfficientNetConfig, PositionKind, ViTConfig
from vitrail.model import position, relative, rotary
from vitrail.model.bit import BiT
from vitrail.model.efficientnet import EfficientNet
from vitrail.model.encoder import Encoder
from vitrail.model.heads import AttentionPooling, Classifier, Pooling, PreLogits
from vitrail.model.patches import PatchEmbedding
from vitrail.model.position import EveryLayer, Position
from vitrail.model.resnet import ResNet
from vitrail.model.vision import VisionTransformer

Model = VisionTransformer | BiT | EfficientNet
"""What ``build`` gives: all have a config, a pooling, a classifier or none, features, classify and depth."""

POSITIONS: dict[PositionKind, type[Position]] = {
    "none": position.NoPosition,
    "learned-1d": position.Learned1D,
    "sinusoidal-1d": position.Sinusoidal1D,
    "learned-2d": position.Learned2D,
    "sincos-2d": position.SinCos2D,
    "relative-1d": relative.Relative1D,
    "relative-2d": relative.Relative2D,
    "rope-2d": rotary.Rope2D,
}


@overload
def build(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """A Vision Transformer, hybrid or not."""


@overload
def build(config: BiTConfig, seed: int = 0) -> BiT:
    """A ResNet."""


@overload
def build(config: EfficientNetConfig, seed: int = 0) -> EfficientNet:
    """An EfficientNet."""


@overload
def build(config: Architecture, seed: int = 0) -> Model:
    """Any of them."""


def build(config: Architecture, seed: int = 0) -> Model:
    """A model with fresh weights, which depend on ``config`` and ``seed`` alone; in evaluation mode.

    Raises:
        UserError: an EfficientNet, and torchvision is not installed.
    """
    if not isinstance(config, ViTConfig):
        with seeded(seed):
            return (BiT(config) if isinstance(config, BiTConfig) else EfficientNet(config)).eval()
    encoder, head = config.encoder, config.head
    channels = config.channels if config.stem is None else config.stem.outputs
    with seeded(seed):
        model = VisionTransformer(
            config,
            stem=None if config.stem is None else ResNet(config.stem, config.channels),
            patches=PatchEmbedding(channels, encoder.width, config.patch),
            position=_position(config),
            encoder=Encoder(encoder),
            pooling=Pooling(head, config.tokens, AttentionPooling(encoder) if "map" in head.parts else None),
            prelogits=None if head.prelogits is None else PreLogits(config.feature_width, head.prelogits),
            classifier=Classifier(config.classifier_width, head.classes) if head.classes else None,
        )
    return model.eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fresh weights made within depend on ``seed`` alone; the generator they come from is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        yield


@contextmanager
def blank() -> Iterator[None]:
    """Tensors made within have shapes and no memory: for who counts them, or has others to put in their place."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Leaves out normal draws: without memory torch would work them out in Python, and first import its compiler.

    That takes as long as importing torch itself, in every command that loads a model.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "normal_":  # of torch.nn.init, or a tensor's own
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def to_grid(tensors: Mapping[str, Tensor], old: Architecture, new: Architecture) -> tuple[dict[str, Tensor], str]:
    """Take the positions in a model's ``tensors`` from the grid of ``old`` to that of ``new``; a CNN has none.

    Returns:
        The tensors that changed, and a note of how; an empty one if nothing needed doing.
    """
    if not (isinstance(old, ViTConfig) and isinstance(new, ViTConfig)) or old.grid == new.grid:
        return {}, ""
    scheme = POSITIONS[old.position.kind]
    sets: dict[str, dict[str, Tensor]] = {}  # under position, or position.layers.0 and so on
    for name, tensor in tensors.items():
        if name.startswith("position."):
            owner, _, own = name.rpartition(".")
            sets.setdefault(owner, {})[own] = tensor
    changed: dict[str, Tensor] = {}
    note = ""
    for owner, tables in (sets or {"": {}}).items():  # a formula has no tensor, but something to say
        taken, note = scheme.to_grid(old, new, tables)
        changed |= {f"{owner}.{name}": tensor for name, tensor in taken.items()}
    return changed, note


def _position(config: ViTConfig) -> Position:
    scheme = POSITIONS[config.position.kind]
    if config.position.place == "every-layer":
        return EveryLayer([scheme(config) for _ in range(config.encoder.layers)])
    return scheme(config)
