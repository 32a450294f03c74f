"""Dropout (1207.0580) that costs a processor little."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

LEVELS = 2**16
"""A rate is rounded to one in so many: 16 random bits a number."""


def kept(x: Tensor, cut: int) -> Tensor:
    """For each number of x (...) 0, in ``cut`` cases of ``LEVELS``, or what makes up for those: (...) of its dtype."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # (ceil(n / 4),) for n numbers
    whether = bits.view(torch.int16)[: x.numel()].view(x.shape)  # (4 ceil(n / 4),) -> (n,) -> (...)
    whether.ge_(cut - LEVELS // 2)  # 1 or 0
    return whether.to(x.dtype).mul_(LEVELS / (LEVELS - cut))


class Dropout(nn.Dropout):
    """``nn.Dropout`` with 16 random bits a number on a processor, where PyTorch draws one at a time.

    Dropping after every dense layer, as ViT does (appendix B.1), PyTorch's takes up to half of a training step in
    bf16. The bits come from PyTorch's own generator, so ``torch.manual_seed`` decides them.
    """

    kept: ClassVar[staticmethod[[Tensor, int], Tensor]] = staticmethod(kept)

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...), what is kept scaled up so that the expectation stays."""
        cut = round(self.p * LEVELS)
        if not self.training or x.device.type != "cpu" or not 0 < cut < LEVELS:
            return super().forward(x)
        return x * self.kept(x, cut)
