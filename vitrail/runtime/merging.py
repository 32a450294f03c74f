"""Token merging: similar patches become one on their way through the encoder (ToMe, 2210.09461, section 3).

Between attention and MLP of a block the patches are split by turns into two sets; each of the first set points
at the most similar of the second, by the mean over heads of their keys, and the ``r`` most similar pairs become
their mean. A token then stands for several patches: it counts so often in attention, in later merging and in pooling.
No shape depends on what is in the image, so that a model with merging is compiled and exported like one without.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.cost import merged_tokens
from vitrail.errors import UserError
from vitrail.model.attention import fused, proportional
from vitrail.model.encoder import Block
from vitrail.model.position import Position
from vitrail.model.vision import VisionTransformer
from vitrail.parts import ABSOLUTE


class Matching(NamedTuple):
    """Which tokens stay, as places among N before, and which go where: at ``into`` among those that stay."""

    stay: Tensor
    """(B, N - r)"""
    go: Tensor
    """(B, r)"""
    into: Tensor
    """(B, r)"""

    def sums(self, x: Tensor) -> Tensor:
        """(B, N, D) -> the tokens that stay, each with those that went into it added: (B, N - r, D)."""
        into = self.into.unsqueeze(-1).expand(-1, -1, x.shape[-1])  # (B, r, D)
        return _rows(x, self.stay).scatter_add(1, into, _rows(x, self.go))

    def means(self, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """(B, N, D) -> (B, N - r, D), means by the tokens' sizes ``before`` (B, N, 1) and ``after`` (B, N - r, 1)."""
        return (self.sums(x * before) / after).to(x.dtype)


def match(keys: Tensor, special: int, merged: int) -> Matching:
    """Bipartite soft matching (section 3, steps 1 to 5) of the N - ``special`` patches.

    The first, third, fifth patch and so on may go, in each sample the ``merged`` most similar to one of the
    others. What stays is in this order: the special tokens, the rest of the first set, the second set.

    Args:
        keys: (B, K, N, D/K), of the attention before.
    """
    B, _, N, _ = keys.shape
    with torch.autocast(keys.device.type, enabled=False):  # in bfloat16 too many pairs would seem equally similar
        metric = F.normalize(keys[:, :, special:].float().mean(dim=1), dim=-1)  # (B, n, D/K)
        scores = metric[:, ::2] @ metric[:, 1::2].transpose(-2, -1)  # (B, a, b)
    best, partner = scores.max(dim=-1)  # (B, a) each
    order = best.topk(best.shape[1], dim=-1).indices  # all of them, most similar first
    go, rest = order[:, :merged], order[:, merged:].sort(dim=-1).values  # (B, r), (B, a - r)
    places = torch.arange(N, device=keys.device).expand(B, -1)
    stay = torch.cat([places[:, :special], special + 2 * rest, places[:, special + 1 :: 2]], dim=1)
    return Matching(stay, special + 2 * go, special + rest.shape[1] + partner.gather(1, go))


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """(B, N, D) -> the tokens at ``places`` (B, n): (B, n, D).

    As rows of one matrix (B N, D), which are copied whole; ``gather``, number by number, takes two to three
    times as long on a CPU.
    """
    first = torch.arange(x.shape[0], device=x.device).unsqueeze(-1) * x.shape[1]  # (B, 1)
    rows = x.flatten(0, 1).index_select(0, (first + places).flatten())  # (B n, D)
    return rows.view(*places.shape, x.shape[2])


class Merged(nn.Module):
    """A model's features, with ``merging[l]`` tokens merged in layer l.

    Special tokens (class, distillation, registers) never merge, and nothing merges into them. An absolute
    position that is added before every block is, for a merged token, the mean of its patches' positions.

    Raises:
        UserError: the model's positions are not absolute, or a layer has too few patches to merge so many.
    """

    def __init__(self, model: VisionTransformer, merging: tuple[int, ...]) -> None:
        super().__init__()
        position = model.config.position
        if position.kind not in ("none", *ABSOLUTE):
            raise UserError(
                f"Tokens cannot be merged in a model with positions of kind {position.kind}, which know the place of "
                "every patch inside attention: run it without merging."
            )
        merged_tokens(model.config, merging)
        self.model = model
        self.merging = merging or (0,) * model.config.encoder.layers
        self.anew = position.place != "stem"

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> features (B, F); without any merging, those of the model, bit for bit.

        Raises:
            UserError: the images are not of the model's size.
        """
        model = self.model
        special, pooled = len(model.config.tokens), model.pooling.config.layers
        x = model.prepend(model.embed(images))  # (B, N, D)
        sizes: Tensor | None = None  # (B, N, 1): how many patches each token is the mean of; None: of one
        members: Tensor | None = None  # (B, n, N): what share each patch has in each token; None: every one its own
        outputs: list[Tensor] = []
        counts: list[Tensor | None] = []
        for layer, (block, merged) in enumerate(zip(model.encoder.blocks, self.merging, strict=True)):
            assert isinstance(block, Block)
            x = placed(model.position, x, layer, members)
            if layer == 0:
                x = model.encoder.dropout(x)
            read = model.pooling.read if layer + 1 == len(self.merging) else None
            q, k, v = block.attention.split(block.norm1(x))  # each (B, K, N, D/K)
            q = q[:, :, :read]
            mixed = block.attention.join(fused(q, k, v, None if sizes is None else proportional(sizes, q)))
            x = x[:, :read] + block.drop_path(block.scale1(mixed))
            if merged and read is None:  # nobody reads what would merge
                matching = match(k, special, merged)
                before = x.new_ones(*x.shape[:2], 1, dtype=torch.float32) if sizes is None else sizes
                sizes = matching.sums(before)
                x = matching.means(x, before, sizes)
                if self.anew:
                    own = torch.eye(x.shape[1] + merged, device=x.device).expand(x.shape[0], -1, -1)
                    members = matching.means(own if members is None else members, before, sizes)
            x = x + block.drop_path(block.scale2(block.mlp(block.norm2(x))))
            if layer >= len(self.merging) - pooled:
                outputs.append(x)
                counts.append(sizes)
        features: Tensor = model.pooling(outputs, model.norm, counts)
        return features


def placed(position: Position, x: Tensor, layer: int, members: Tensor | None) -> Tensor:
    """(B, n, D) -> as block ``layer`` shall see it; ``members`` (B, n, N) are the shares of the N tokens in the n."""
    if members is None:
        return position.add(x, layer)
    added = position.add(x.new_zeros(1, members.shape[2], x.shape[2]), layer)  # (1, N, D)
    return x + members.to(x.dtype) @ added
