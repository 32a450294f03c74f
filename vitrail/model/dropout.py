"""Dropout (1207.0580) that costs a processor little."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

STEPS = 2**16
"""Shares that a rate is rounded to: 16 random bits a number."""


def kept(x: Tensor, cut: int) -> Tensor:
    """For each number of x (...) 0, in ``cut`` cases of ``STEPS``, or what makes up for those: (...) of its dtype."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    whether = bits.view(torch.int16)[: x.numel()].view(x.shape).ge_(cut - STEPS // 2)
    return whether.to(x.dtype).mul_(STEPS / (STEPS - cut))


class Dropout(nn.Dropout):
    """``nn.Dropout`` with 16 random bits a number on a processor, where PyTorch draws one at a time.

    Dropping after every dense layer, as ViT does (appendix B.1), PyTorch's takes up to half of a training step in
    bf16. The bits come from PyTorch's own generator, so ``torch.manual_seed`` decides them.
    """

    kept: ClassVar[staticmethod[[Tensor, int], Tensor]] = staticmethod(kept)

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...), what is kept scaled up so that the expectation stays."""
        cut = round(self.p * STEPS)
        if not self.training or x.device.type != "cpu" or not 0 < cut < STEPS:
            return super().forward(x)
        return x * self.kept(x, cut)
