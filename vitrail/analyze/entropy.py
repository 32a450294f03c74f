"""How spread out attention is, and what of it special tokens get: attention sinks (2309.16588, 2309.17453)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.analyze.moments import Moments
from vitrail.analyze.stream import Kind, Statistic
from vitrail.config import ViTConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLOCK = 2**18
"""Weights looked at together: few enough to stay in a processor's cache."""


def entropy(weights: Tensor) -> Tensor:
    """-sum_j a_j log a_j in nats over the last axis: (..., N) -> (...), in float32 or better; 0 log 0 is 0.

    Weights in half precision do not quite sum to 1, so each row is divided by its sum first.
    """
    rows = weights.detach().reshape(-1, weights.shape[-1])
    precision = torch.promote_types(weights.dtype, torch.float32)
    result = rows.new_empty(len(rows), dtype=precision)
    done = 0
    for block in torch.split(rows, max(1, BLOCK // rows.shape[1])):
        block = block.to(precision)
        total = block.sum(dim=-1)
        # log of the smallest normal number instead of log 0: times 0 it is 0.
        logarithm = block.clamp_min(torch.finfo(precision).tiny).log_()
        result[done : done + len(block)] = total.log() - logarithm.mul_(block).sum(dim=-1) / total
        done += len(block)
    return result.view(weights.shape[:-1])


@dataclass(frozen=True)
class Estimate:
    """A mean over images for each layer and head, (L, K), and its 95 % t interval; nan for a single image."""

    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class AttentionEntropy(Finding):
    """The entropy of attention in nats, and the shares of it that special tokens get, by layer and head."""

    name: ClassVar[str] = "attention-entropy"

    quantities: dict[str, Estimate]
    """``entropy``: of a patch's distribution over all N keys, mean over patches. Where there are such tokens:
    ``class_entropy``: that of the class token's; ``to_special``: the share that patches give to the special
    tokens together; ``to_class``, ``to_distillation`` and ``to_register``: to those of one kind, where there
    are several; ``class_to_itself``: the share that the class token keeps."""
    tokens: int
    """N; log N is the entropy of attention that is the same everywhere."""
    special: int
    """How many of the N are special tokens."""
    images: int

    @property
    def normalised(self) -> Array:
        """(L, K): the patches' mean entropy as a share of log N, in [0, 1]; nan where N is 1."""
        return self._of_uniform("entropy")

    def _of_uniform(self, quantity: str) -> Array:
        mean = self.quantities[quantity].mean
        share: Array = mean / math.log(self.tokens) if self.tokens > 1 else np.full_like(mean, np.nan)
        return share

    def table(self) -> dict[str, Array]:
        """A row for each layer and head, counted from 1; shares of attention lie in [0, 1]."""
        layers, heads = self.quantities["entropy"].mean.shape
        columns = {
            "layer": np.repeat(np.arange(1, layers + 1), heads),
            "head": np.tile(np.arange(1, heads + 1), layers),
        }
        for quantity, found in self.quantities.items():
            columns |= {quantity: found.mean.ravel()}
            columns |= {f"{quantity}_low": found.low.ravel(), f"{quantity}_high": found.high.ravel()}
            if quantity.endswith("entropy"):
                columns[f"{quantity}_of_uniform"] = self._of_uniform(quantity).ravel()
        return columns

    def summary(self) -> dict[str, Any]:
        """Means of each layer's heads, and the heads furthest from uniform attention."""
        by_layer = {f"layer_mean_{name}": found.mean.mean(axis=1).tolist() for name, found in self.quantities.items()}
        mean = self.quantities["entropy"].mean
        layer, head = np.unravel_index(mean.argmin(), mean.shape)
        return {
            "images": self.images,
            "tokens": self.tokens,
            "special_tokens": self.special,
            "uniform_entropy": math.log(self.tokens),
            "uniform_share_of_special": self.special / self.tokens,
            **by_layer,
            "sharpest_head": {"layer": int(layer) + 1, "head": int(head) + 1, "entropy": float(mean.min())},
        }

    @canvas.styled
    def plot(self) -> Figure:
        """A dot for each head at its layer: entropy, and beside it, where there are special tokens, what they get."""
        panels, width = 2 if self.special else 1, min(max(4.4, 0.28 * len(self.normalised)), 7.0)
        drawn, axes = canvas.figure(1, panels, size=(width * panels + 0.6, 3.7))
        shown = [("entropy", "class_entropy"), ("to_special", "class_to_itself")]
        for panel, (patches, own) in zip(axes, shown, strict=False):
            both = own in self.quantities
            self._heads(panel, patches, canvas.BLUE, "from patches", (-0.34, -0.06) if both else (-0.28, 0.28))
            if both:
                self._heads(panel, own, canvas.AMBER, "from the class token", (0.06, 0.34))
            uniform = math.log(self.tokens) if panel is axes[0] else self.special / self.tokens
            panel.axhline(uniform, color=canvas.SOFT, lw=1, ls=(0, (5, 4)), label="if it were uniform")
            panel.set_ylim(bottom=0)
        axes[0].set_ylabel("nats")
        axes[0].set_title("Entropy of attention")
        if self.special:
            axes[1].set_ylabel("share of attention")
            itself = ", or the class token to itself" if "class_to_itself" in self.quantities else ""
            axes[1].set_title("To special tokens" + itself)
        canvas.legend(drawn, axes[0])
        return drawn

    def _heads(self, axes: Axes, quantity: str, colour: str, label: str, within: tuple[float, float]) -> None:
        found = self.quantities[quantity]
        canvas.heads(axes, found.mean, found.low, found.high, colour, within=within)
        depth = np.arange(1, len(found.mean) + 1)
        axes.plot(depth, found.mean.mean(axis=1), color=colour, lw=1.8, label=label)


class MeanEntropy(Statistic):
    """Accumulates ``AttentionEntropy`` over any number of images; of each batch nothing is kept."""

    def __init__(self, config: ViTConfig) -> None:
        self.attention = range(config.encoder.layers)
        self.tokens = config.sequence
        self.special = len(config.tokens)
        self.own = config.tokens.index("class") if "class" in config.tokens else None
        kinds = list(dict.fromkeys(config.tokens))
        self.groups = {"to_special": list(range(self.special))} if kinds else {}
        if len(kinds) > 1:
            self.groups |= {
                f"to_{kind}": [i for i, token in enumerate(config.tokens) if token == kind] for kind in kinds
            }
        self.names = ["entropy", *self.groups] + ([] if self.own is None else ["class_entropy", "class_to_itself"])
        self.moments = Moments((config.encoder.layers, len(self.names), config.encoder.heads))
        self.batch: list[Tensor] = []

    def receive(self, kind: Kind, layer: int, values: Tensor) -> None:
        """Attention weights (B, K, N, N)."""
        rows = entropy(values)  # (B, K, N)
        given = values[:, :, self.special :, : self.special].float().mean(dim=2)  # (B, K, T)
        numbers = [rows[:, :, self.special :].mean(dim=2)]
        numbers += [given[:, :, tokens].sum(dim=2) for tokens in self.groups.values()]
        if self.own is not None:
            numbers += [rows[:, :, self.own], values[:, :, self.own, self.own]]
        self.batch.append(torch.stack([number.float() for number in numbers], dim=1))  # (B, M, K)

    def close(self) -> None:
        """The batch's numbers, (B, L, M, K), go into the means."""
        self.moments.add(torch.stack(self.batch, dim=1))
        self.batch = []

    def finding(self) -> AttentionEntropy:
        """What has come together.

        Raises:
            UserError: there was no image.
        """
        mean = self.moments.mean
        low, high = self.moments.interval()  # (L, M, K)
        quantities = {name: Estimate(mean[:, i], low[:, i], high[:, i]) for i, name in enumerate(self.names)}
        return AttentionEntropy(quantities, self.tokens, self.special, self.moments.count)
