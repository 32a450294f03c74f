"""Tokens -> features -> logits: what of the last blocks' outputs a classifier sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrail.config import HeadConfig


class Pooling(nn.Module):
    """The ``parts`` of the last ``layers`` blocks' outputs, concatenated, oldest block first."""

    def __init__(self, config: HeadConfig, tokens: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.names = tuple(tokens)

    def forward(self, outputs: Sequence[Tensor], norm: nn.Module) -> Tensor:
        """Outputs of the last blocks, each (B, N, D) -> features (B, layers * parts * D).

        ``norm`` is the model's last LayerNorm: applied to every token (the paper, equation 4) or,
        where the configuration says so, to what was pooled.
        """
        before = self.config.norm == "tokens"
        pooled = torch.stack([self.parts(norm(x) if before else x) for x in outputs], dim=1)
        return (pooled if before else norm(pooled)).flatten(1)  # (B, layers, parts, D) -> (B, F)

    def parts(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, parts, D)."""
        pooled = [
            x[:, len(self.names) :].mean(dim=1) if part == "mean" else x[:, self.names.index(part)]
            for part in self.config.parts
        ]
        return torch.stack(pooled, dim=1)


class Classifier(nn.Linear):
    """One linear layer, zero-initialised as ViT's is for fine-tuning (section 3.2)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
