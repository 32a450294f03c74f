"""Batches in pieces: of a size at most, and in few sizes for engines that are built for one size at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def in_pieces(run: Callable[[Tensor], Tensor], images: Tensor, most: int) -> Tensor:
    """Run (B, ...) in pieces of at most ``most``."""
    found = [run(piece) for piece in torch.split(images, most)]
    return torch.cat(found) if len(found) > 1 else found[0]


def sizes_up_to(most: int) -> tuple[int, ...]:
    """The sizes that ``in_sizes`` runs, smallest first."""
    return (*(1 << power for power in range((most - 1).bit_length())), most)


def in_sizes(run: Callable[[Tensor], Tensor], images: Tensor, most: int) -> Tensor:
    """``in_pieces``, where a smaller one is filled up with zeros to a power of two.

    So there are few sizes, a single picture costs what one picture costs, and a batch's last piece at most twice
    what it must.
    """

    def run_filled(piece: Tensor) -> Tensor:
        size = min(most, 1 << (len(piece) - 1).bit_length())
        filled = F.pad(piece, (0, 0) * (piece.ndim - 1) + (0, size - len(piece))) if size > len(piece) else piece
        return run(filled)[: len(piece)]

    return in_pieces(run_filled, images, most)
