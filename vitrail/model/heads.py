"""Tokens -> features -> logits: what of the last blocks' outputs a classifier sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrail.config import EncoderConfig, HeadConfig
from vitrail.model.attention import fused, proportional
from vitrail.model.encoder import MLP

NO_CLASSIFIER = "This model has no classifier: fine-tune it first, or ask for its features."


class AttentionPooling(nn.Module):
    """A learned probe attends to all tokens; an MLP with a residual follows (2106.04560, section 3.2; SigLIP).

    Heads, MLP and epsilon are those of the encoder's blocks.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.probe = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, width)))  # (1, D)
        self.q = nn.Linear(width, width, bias=config.qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=config.qkv_bias)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, config.mlp_width, config.mlp, config.dropout)
        for matrix in (self.q.weight, *self.kv.weight.data.chunk(2), self.out.weight):
            nn.init.xavier_uniform_(matrix)
        for bias in (self.q.bias, self.kv.bias, self.out.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, D); ``sizes`` (B, N, 1) as in ``Pooling``."""
        B, N, D = x.shape
        q = self.q(self.probe).view(1, 1, self.heads, -1).expand(B, -1, -1, -1).transpose(1, 2)  # (B, K, 1, D/K)
        k, v = self.kv(x).view(B, N, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # (B, K, N, D/K)
        bias = None if sizes is None else proportional(sizes, q)  # (B, 1, 1, N)
        pooled: Tensor = self.out(fused(q, k, v, bias).transpose(1, 2).reshape(B, 1, D))  # (B, 1, D)
        pooled = pooled + self.mlp(self.norm(pooled))
        return pooled[:, 0]


class Pooling(nn.Module):
    """The ``parts`` of the last ``layers`` blocks' outputs, concatenated, oldest block first."""

    def __init__(self, config: HeadConfig, tokens: Sequence[str], attention: AttentionPooling | None = None) -> None:
        super().__init__()
        self.config = config
        self.names = tuple(tokens)
        self.map = attention

    @property
    def read(self) -> int | None:
        """How many of the last block's tokens, from the first, are read; None: all, or several blocks are."""
        if self.config.layers > 1 or not {*self.config.parts} <= {*self.names}:
            return None
        return 1 + max(self.names.index(part) for part in self.config.parts)

    def forward(
        self, outputs: Sequence[Tensor], norm: nn.Module, sizes: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """Outputs of the last blocks, each (B, N, D) -> features (B, layers * parts * D).

        ``norm`` is the model's last LayerNorm: applied to every token (the paper, equation 4) or,
        where the configuration says so, to what was pooled. ``sizes``, for each of the outputs, says of how
        many tokens each is the mean (B, N, 1); None: of one.
        """
        before = self.config.norm == "tokens"
        counts = sizes or [None] * len(outputs)
        pooled = torch.stack(
            [self.parts(norm(x) if before else x, s) for x, s in zip(outputs, counts, strict=True)], dim=1
        )
        return (pooled if before else norm(pooled)).flatten(1)  # (B, layers, parts, D) -> (B, F)

    def parts(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, parts, D)."""
        return torch.stack([self._part(part, x, sizes) for part in self.config.parts], dim=1)

    def _part(self, part: str, x: Tensor, sizes: Tensor | None) -> Tensor:
        if self.map is not None and part == "map":
            pooled: Tensor = self.map(x, sizes)
            return pooled
        if part != "mean":
            return x[:, self.names.index(part)]
        patches = x[:, len(self.names) :]
        if sizes is None:
            return patches.mean(dim=1)
        counts = sizes[:, len(self.names) :]
        return ((patches * counts).sum(dim=1) / counts.sum(dim=1)).to(x.dtype)


class PreLogits(nn.Linear):
    """A dense layer with tanh before the classifier: ViT's MLP head while pretraining (section 3.1)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, width)."""
        return torch.tanh(super().forward(features))


class Classifier(nn.Linear):
    """One linear layer, zero-initialised as ViT's is for fine-tuning (section 3.2)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
