"""The feature maps of any vision model, layer by layer: what ViT and CNN can be compared in."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

from vitrail.config import Size
from vitrail.errors import UserError
from vitrail.model.cnn import CNN
from vitrail.model.encoder import Trace
from vitrail.model.resnet import ResNet
from vitrail.model.vision import VisionTransformer

Maps = Callable[[Tensor], list[tuple[str, Tensor]]]
"""Images (B, C, H, W) -> name and feature map (B, D, h, w) of each layer, from the first to the last."""


def feature_maps(model: nn.Module) -> Maps:
    """How to get the feature maps of ``model``: a ViT's blocks, a CNN's stages, or what a module gives.

    A ViT's special tokens are left out. Any other module must give (B, D, h, w), or a list of such.

    Raises:
        UserError (when called): the module gives something else.
    """
    if isinstance(model, VisionTransformer):
        return lambda images: _blocks(model, images)
    if isinstance(model, CNN):
        return lambda images: [(f"stage {at + 1}", x) for at, x in enumerate(model.stage_maps(images))]
    if isinstance(model, ResNet):
        return lambda images: _stages(model, images)
    return lambda images: _given(model, images)


def stride(size: Size, features: Tensor) -> tuple[Fraction, Fraction]:
    """Pixels from one cell of a map (B, D, h, w) to the next, down and across, for images of ``size``.

    A whole number, though padding or the lack of it leaves H / h near one only; of a map finer than the
    image, a whole part of a pixel.
    """
    down, across = (
        Fraction(max(1, round(pixels / cells)), max(1, round(cells / pixels)))
        for pixels, cells in zip(size, features.shape[2:], strict=True)
    )
    return down, across


def _blocks(model: VisionTransformer, images: Tensor) -> list[tuple[str, Tensor]]:
    layers, seen = model.config.encoder.layers, list[tuple[str, Tensor]]()

    def receive(kind: str, layer: int, z: Tensor) -> None:
        patches = z[:, len(model.config.tokens) :].mT  # (B, D, h w)
        seen.append((f"block {layer + 1}", patches.reshape(len(z), -1, *model.config.grid)))

    model.encode(images, 1, Trace(receive, blocks=range(layers)))
    return seen


def _stages(model: ResNet, images: Tensor) -> list[tuple[str, Tensor]]:
    seen: list[tuple[str, Tensor]] = []
    handles = [
        stage.register_forward_hook(lambda _, __, x, name=f"stage {number}": seen.append((name, x)))
        for number, stage in enumerate(model.stages, 1)
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _given(model: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    result = model(images)
    maps = list(result) if isinstance(result, (list, tuple)) else [result]
    if not maps or any(not isinstance(x, torch.Tensor) or x.ndim != 4 for x in maps):
        raise UserError(
            f"{type(model).__name__} gives no feature map (B, D, h, w): hand in the part of it before pooling."
        )
    return [("output" if len(maps) == 1 else f"output {number}", x) for number, x in enumerate(maps, 1)]
