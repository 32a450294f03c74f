"""Dropout (1207.0580) that costs a processor little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEPS = 2**16
"""Shares that a rate is rounded to: 16 random bits a number."""


class Dropout(nn.Dropout):
    """``nn.Dropout`` with 16 random bits a number on a processor, where PyTorch draws one at a time.

    Dropping after every dense layer, as ViT does (appendix B.1), PyTorch's takes up to a third of a training step in
    bf16. The bits come from PyTorch's own generator, so ``torch.manual_seed`` decides them. What is compiled, and what
    runs elsewhere, drops as PyTorch does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...), what is kept scaled up so that the expectation stays."""
        cut = round(self.p * STEPS)
        if not self.training or x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < cut < STEPS:
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape).ge_(cut - STEPS // 2)  # 1 or 0
        return x * kept.to(x.dtype).mul_(STEPS / (STEPS - cut))
