"""The Transformer encoder (ViT section 3.1, equations 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import EncoderConfig, MLPKind
from vitrail.errors import UserError
from vitrail.model.attention import Attention
from vitrail.model.dropout import Dropout
from vitrail.model.position import Position, Relation


@dataclass(frozen=True)
class Trace:
    """What an onlooker wants to see of a forward pass, and whom to hand it to.

    ``receive("attention", l, (B, K, N, N))`` and ``receive("block", l, (B, N, D))`` are called layer
    by layer as the values appear; the encoder keeps none of them, and every layer not named here
    stays fused. Layers count from 0.
    """

    receive: Callable[[Literal["attention", "block"], int, Tensor], None]
    attention: Collection[int] = ()
    blocks: Collection[int] = ()

    def check(self, layers: int) -> None:
        """Raise UserError for a layer that does not exist: an onlooker never gets an empty answer."""
        for layer in (*self.attention, *self.blocks):
            if not 0 <= layer < layers:
                raise UserError(f"There is no layer {layer}: the model has layers 0 to {layers - 1}.")


class MLP(nn.Module):
    """Two dense layers with GELU between, or SwiGLU: silu(x A) * (x B) before the second (DINOv2's g)."""

    def __init__(self, width: int, hidden: int, kind: MLPKind, dropout: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self.fc1 = nn.Linear(width, 2 * hidden if kind == "swiglu" else hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        hidden = self.fc1(x)  # (B, N, MLP width), twice as wide for SwiGLU
        if self.kind == "swiglu":
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden, approximate="tanh" if self.kind == "gelu-tanh" else "none")
        result: Tensor = self.dropout(self.fc2(self.dropout(hidden)))
        return result


class LayerScale(nn.Module):
    """A learned diagonal on a residual branch (CaiT, 2103.17239, section 2)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return x * self.scale


class DropPath(nn.Module):
    """Stochastic depth (1603.09382): drops a residual branch for whole samples while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D), kept branches scaled up so that the expectation stays."""
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty(x.shape[0], 1, 1).bernoulli_(1.0 - self.rate)  # (B, 1, 1)
        return x * keep / (1.0 - self.rate)


class Block(nn.Module):
    """z' = MSA(LN(z)) + z; z = MLP(LN(z')) + z' (equations 2 and 3), with the branch parts of ``config``."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if config.layer_scale is None else LayerScale(config.width, config.layer_scale)

        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config.width, config.heads, config.qkv_bias, config.dropout)
        self.scale1 = scale()
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.mlp, config.dropout)
        self.scale2 = scale()
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        relation: Relation | None = None,
        observe: Callable[[Tensor], None] | None = None,
        read: int | None = None,
    ) -> Tensor:
        """(B, N, D) -> the first ``read`` tokens, or all, (B, n, D); ``relation`` and ``observe`` are attention's."""
        x = x[:, :read] + self.drop_path(self.scale1(self.attention(self.norm1(x), relation, observe, read)))
        x = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        return x


class Encoder(nn.Module):
    """L pre-norm blocks; the LayerNorm that follows the last belongs to whoever reads the output."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        rates = torch.linspace(0.0, config.drop_path, config.layers, device="cpu").tolist()
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)

    def forward(
        self, x: Tensor, position: Position, last: int = 1, trace: Trace | None = None, read: int | None = None
    ) -> tuple[Tensor, ...]:
        """(B, N, D) -> outputs of the ``last`` blocks, oldest first, each (B, N, D).

        ``position`` may add to what a block sees and take part in its attention; tokens are dropped out
        once, after the positions before the first block (ViT appendix B.1).

        Args:
            read: of the last block's output only so many tokens, from the first, are read, so no others are made: the
                class token is (B, 1, D), for a quarter of the block's work. Where that block is looked at, all are.

        Raises:
            UserError: ``trace`` names a layer that does not exist.
        """
        if trace is not None:
            trace.check(len(self.blocks))
        outputs: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            observe = None
            if trace is not None and layer in trace.attention:
                observe = _attention_receiver(trace, layer)
            x = position.add(x, layer)
            if layer == 0:
                x = self.dropout(x)
            seen = trace is not None and layer in (*trace.attention, *trace.blocks)
            whole = seen or layer + 1 < len(self.blocks)
            x = block(x, position.relation(layer), observe, None if whole else read)
            if trace is not None and layer in trace.blocks:
                trace.receive("block", layer, x)
            if layer >= len(self.blocks) - last:
                outputs.append(x)
        return tuple(outputs)


def _attention_receiver(trace: Trace, layer: int) -> Callable[[Tensor], None]:
    return lambda weights: trace.receive("attention", layer, weights)
