"""Multi-head self-attention: fused by default, explicit when its weights are asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D/K)) v for (B, K, N, D/K) each, never holding N x N numbers.

    On a CPU PyTorch's backward pass of it is several times slower in bfloat16 than in float32
    (benchmarks/training_step.py), so there it is trained in float32, whatever surrounds it.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """MSA of ViT's equation 2 and appendix A: softmax(q k^T / sqrt(D/K)) v in each of K heads.

    The dropout follows the output projection only: ViT has none on the attention weights, and on a
    CPU dropping them would write out all N x N of them.
    """

    def __init__(self, width: int, heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        for matrix in (*self.qkv.weight.data.chunk(3), self.out.weight):  # q, k and v are three matrices
            nn.init.xavier_uniform_(matrix)
        for bias in (self.qkv.bias, self.out.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x: Tensor, observe: Callable[[Tensor], None] | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); ``observe`` is handed the attention weights (B, K, N, N)."""
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.heads, D // self.heads)  # (B, N, 3, K, D/K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, K, N, D/K)
        if observe is None:
            mixed = fused(q, k, v)  # (B, K, N, D/K)
        else:
            weights = torch.softmax(q @ k.transpose(-2, -1) * (D // self.heads) ** -0.5, dim=-1)
            observe(weights)
            mixed = weights @ v
        mixed = mixed.transpose(1, 2).reshape(B, N, D)
        projected: Tensor = self.dropout(self.out(mixed))
        return projected
