"""One pass over images for any number of statistics: they look on, layer by layer, and nothing is kept for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vitrail.model.encoder import Trace

Kind = Literal["attention", "block"]
Forward = Callable[[Tensor, Trace], object]
"""Runs a model on images (B, C, H, W) and hands what the trace asks for to it."""


class Statistic(ABC):
    """Something accumulated over images from what a forward pass shows.

    For each batch ``receive`` is called with what was asked for, in the order of the layers, and then
    ``close`` once; the tensors are the model's own and not to be kept or changed.
    """

    attention: Collection[int] = ()
    """Layers whose attention weights it wants to see."""
    blocks: Collection[int] = ()
    """Layers whose outputs it wants to see."""

    @abstractmethod
    def receive(self, kind: Kind, layer: int, values: Tensor) -> None:
        """Attention weights (B, K, N, N), or a block's output (B, N, D)."""

    def close(self) -> None:  # noqa: B027 (most statistics have nothing to do here)
        """The batch is over."""


def observe(forward: Forward, batches: Iterable[Tensor], statistics: Sequence[Statistic]) -> int:
    """Run ``forward`` over batches of images once, for all statistics together; returns the number of images.

    If ``forward`` runs in half precision (autocast), the arithmetic of the statistics does not.

    No gradients are recorded.

    Raises:
        UserError: a statistic asks for a layer that does not exist.
    """

    def receive(kind: Kind, layer: int, values: Tensor) -> None:
        with torch.autocast(values.device.type, enabled=False):
            for statistic in statistics:
                if layer in (statistic.attention if kind == "attention" else statistic.blocks):
                    statistic.receive(kind, layer, values)

    attention = {layer for statistic in statistics for layer in statistic.attention}
    blocks = {layer for statistic in statistics for layer in statistic.blocks}
    trace, images = Trace(receive, attention, blocks), 0
    with torch.inference_mode():
        for batch in batches:
            forward(batch, trace)
            for statistic in statistics:
                statistic.close()
            images += len(batch)
    return images
