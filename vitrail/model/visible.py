"""Some of the patches alone: what a position scheme is to those that are left (MAE, 2111.06377, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.errors import UserError
from vitrail.model.position import Position, Relation


def picked(x: Tensor, places: Tensor) -> Tensor:
    """(B, N, D) -> the tokens at ``places`` (B, n) of each sample: (B, n, D)."""
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Visible(Position):
    """A scheme for whole grids, as the learned tokens and the patches ``kept`` (B, n) of each sample see it."""

    def __init__(self, scheme: Position, kept: Tensor, tokens: int, patches: int) -> None:
        super().__init__()
        self.scheme = scheme
        special = torch.arange(tokens, device=kept.device).expand(len(kept), -1)
        self.places = torch.cat([special, kept + tokens], dim=1)  # (B, T + n)
        self.whole = tokens + patches

    def add(self, x: Tensor, layer: int) -> Tensor:
        """(B, T + n, D) -> the same with the positions of the places they came from."""
        nothing = x.new_zeros(1, self.whole, x.shape[-1])
        added = self.scheme.add(nothing, layer)  # (1, N, D)
        return x if added is nothing else x + picked(added.expand(len(x), -1, -1), self.places)

    def relation(self, layer: int) -> Relation | None:
        """Rotations, at the places the tokens came from.

        Raises:
            UserError: the scheme knows offsets between patches, which differ from sample to sample.
        """
        relation = self.scheme.relation(layer)
        if relation is not None and relation.biased:
            raise UserError(
                "Relative positions need all patches of an image: choose absolute or rotary ones to leave some out."
            )
        return None if relation is None else _Rotated(relation, self.places, self.whole)


class _Rotated(Relation):
    """A rotation of whole grids, for the tokens at ``places`` (B, n)."""

    def __init__(self, relation: Relation, places: Tensor, whole: int) -> None:
        super().__init__()
        self.relation = relation
        self.places = places
        self.whole = whole

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, n, D/K) each -> the same, laid out on the whole grid, turned there, and picked up again."""
        places = self.places[:, None, :, None].expand_as(q)  # (B, K, n, D/K)
        grid = q.new_zeros(*q.shape[:2], self.whole, q.shape[-1])  # (B, K, N, D/K)
        q, k = self.relation.rotate(grid.scatter(2, places, q), grid.scatter(2, places, k))
        return q.gather(2, places), k.gather(2, places)
