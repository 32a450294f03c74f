"""Attention maps beside the pictures they are of (ViT figure 6; article 6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AttentionMaps(Finding):
    """Where a few pictures are looked at, by every way of asking."""

    name: ClassVar[str] = "attention-maps"

    pictures: Array
    """(n, H, W, 3) of bytes, as the model saw them."""
    names: tuple[str, ...]
    maps: dict[str, Array]
    """What was asked -> (n, h, w), the share that each patch gets of what all get."""
    notes: tuple[str, ...] = ()
    """Why a way of asking is not among them, a sentence each."""

    def __post_init__(self) -> None:
        if not len(self.pictures):
            raise UserError("There is no picture to show attention for: name one that can be read.")

    def table(self) -> dict[str, Array]:
        """A row for each map, picture and patch; rows and columns count from 1."""
        n, h, w = next(iter(self.maps.values())).shape
        which, picture, row, column = (axis.ravel() for axis in np.indices((len(self.maps), n, h, w)))
        return {
            "map": np.array(list(self.maps))[which],
            "picture": np.array(self.names)[picture],
            "row": row + 1,
            "column": column + 1,
            "share": np.stack(list(self.maps.values())).ravel(),
        }

    def summary(self) -> dict[str, Any]:
        """For each map and picture the patch that gets most, counted from 1, and how many times the average that is."""
        peaks = []
        for kind, values in self.maps.items():
            for name, shares in zip(self.names, values, strict=True):
                row, column = (1 + int(at) for at in np.unravel_index(int(shares.argmax()), shares.shape))
                times = float(shares.max() * shares.size)
                peaks.append({"map": kind, "picture": name, "row": row, "column": column, "times": times})
        return {"pictures": len(self.pictures), "peaks": peaks, "notes": list(self.notes)}

    @canvas.styled
    def plot(self) -> Figure:
        """A column for each picture: itself, then under each kind of map, in which its largest share is brightest."""
        kinds, count = list(self.maps), len(self.pictures)
        height, width = self.pictures.shape[1:3]
        size = (1.5 * count + 0.2, 1.5 * height / width * (1 + len(kinds)))
        drawn, axes = canvas.figure(1 + len(kinds), count, size)
        for place, at in enumerate(axes):
            row, number = divmod(place, count)
            picture, extent = self.pictures[number], (-0.5, width - 0.5, height - 0.5, -0.5)
            canvas.picture_only(at)
            if row == 0:
                at.imshow(picture)
            else:
                values = self.maps[kinds[row - 1]][number]
                at.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
                at.imshow(values, cmap=canvas.HEAT, alpha=0.62, extent=extent, interpolation="bicubic", vmin=0)
                at.set(xlim=extent[:2], ylim=extent[2:])
            if number == 0:
                at.set_ylabel("picture" if row == 0 else kinds[row - 1], color=canvas.INK)
        return drawn
