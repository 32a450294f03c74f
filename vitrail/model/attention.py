"""Multi-head self-attention: fused by default, explicit when its weights are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vitrail.model.dropout import Dropout
from vitrail.model.position import Relation

KEPT = 640
"""Most keys whose attention weights are kept in training on a CPU; with more, they would outweigh all else kept."""
BLOCK = 2**18
"""How many logits of one head are biased at a time: all of 512 tokens, a few rows of 4,096."""


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D/K) + bias) v for q (B, K, n, D/K), k and v (B, K, N, D/K), in one piece.

    Without a bias, (B, K, n, N), no more than O(n + N) numbers are held.

    On a CPU PyTorch's backward pass of it is several times slower in bfloat16 than in float32, which in turn
    is half as fast as plain matrix products in bfloat16 (benchmarks/training.py). So there up to
    ``KEPT`` keys are trained by plain products, which keep the weights, and more in float32.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        if k.shape[-2] <= KEPT:
            return weights(q, k, bias) @ v
        with torch.autocast("cpu", enabled=False):
            mask = None if bias is None else bias.float()
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, bias)


def weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D/K) + bias) for q (B, K, n, D/K) and k (B, K, N, D/K): (B, K, n, N)."""
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(logits if bias is None else logits + bias, dim=-1)


def biased(q: Tensor, k: Tensor, v: Tensor, relation: Relation) -> Tensor:
    """``fused`` with the bias of a relation, for (B, K, N, D/K) each, in memory linear in N.

    Blocks of queries go one after another. In training what a block needs is worked out again on the
    way back: kept, the blocks' biases would be the N x N numbers that are to be avoided.
    """

    def mixed(queries: slice, part: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fused(part, k, v, relation.bias(part, queries))

    blocks = list(_blocks(q.shape[2]))
    if len(blocks) == 1 or not torch.is_grad_enabled():
        return torch.cat([mixed(block, q[:, :, block], k, v) for block in blocks], dim=2)
    parts = [
        checkpoint(mixed, block, q[:, :, block], k, v, use_reentrant=False, preserve_rng_state=False)
        for block in blocks
    ]
    return torch.cat(parts, dim=2)


def explicit(q: Tensor, k: Tensor, relation: Relation | None) -> Tensor:
    """The attention weights softmax(q k^T / sqrt(D/K) + bias) themselves: (B, K, N, N)."""

    if relation is None or not relation.biased:
        return weights(q, k)
    blocks = _blocks(q.shape[2])  # so that of N x N there is only the result
    return torch.cat([weights(q[:, :, block], k, relation.bias(q[:, :, block], block)) for block in blocks], dim=2)


def _blocks(tokens: int) -> Iterator[slice]:
    """The tokens cut into runs of queries that see all of them in ``BLOCK`` logits or fewer."""
    length = max(1, BLOCK // tokens)
    for start in range(0, tokens, length):
        yield slice(start, min(start + length, tokens))


def proportional(sizes: Tensor, q: Tensor) -> Tensor:
    """log s as a bias on the logits of q, (B, N, 1) -> (B, 1, 1, N): a key that stands for s equal ones counts s times.

    Token merging's proportional attention (2210.09461, equation 1).
    """
    return sizes.log().to(q.dtype).transpose(-2, -1).unsqueeze(1)


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
        self.dropout = Dropout(dropout)
        for matrix in (*self.qkv.weight.data.chunk(3), self.out.weight):  # q, k and v are three matrices
            nn.init.xavier_uniform_(matrix)
        for bias in (self.qkv.bias, self.out.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self,
        x: Tensor,
        relation: Relation | None = None,
        observe: Callable[[Tensor], None] | None = None,
        read: int | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, n, D).

        Args:
            relation: what the position scheme does to queries, keys and logits.
            observe: is handed the attention weights (B, K, n, N).
            read: n, how many of the tokens, from the first, ask; None: all N.
        """
        q, k, v = self.split(x)  # each (B, K, N, D/K)
        if relation is not None:
            q, k = relation.rotate(q, k)
        q = q[:, :, :read]  # (B, K, n, D/K)
        if observe is not None:
            seen = explicit(q, k, relation)
            observe(seen)
            mixed = seen @ v  # (B, K, N, D/K)
        elif relation is not None and relation.biased:
            mixed = biased(q, k, v, relation)
        else:
            mixed = fused(q, k, v)
        return self.join(mixed)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries, keys and values of each head, (B, K, N, D/K) each."""
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.heads, D // self.heads)  # (B, N, 3, K, D/K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def join(self, mixed: Tensor) -> Tensor:
        """What the heads mixed, (B, K, N, D/K) -> (B, N, D), projected."""
        projected: Tensor = self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return projected
