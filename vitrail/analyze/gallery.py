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
        """A row for each map, picture and patch."""
        n, h, w = next(iter(self.maps.values())).shape
        which, picture, row, column = (axis.ravel() for axis in np.indices((len(self.maps), n, h, w)))
        return {
            "map": np.array(list(self.maps))[which],
            "picture": np.array(self.names)[picture],
            "row": row,
            "column": column,
            "share": np.stack(list(self.maps.values())).ravel(),
        }

    def summary(self) -> dict[str, Any]:
        """For each map and picture the patch that gets most, and how many times the average it gets."""
        peaks = []
        for kind, values in self.maps.items():
            for name, shares in zip(self.names, values, strict=True):
                row, column = np.unravel_index(int(shares.argmax()), shares.shape)
                times = float(shares.max() * shares.size)
                peaks.append({"map": kind, "picture": name, "row": int(row), "column": int(column), "times": times})
        return {"pictures": len(self.pictures), "peaks": peaks, "notes": list(self.notes)}

    @canvas.styled
    def plot(self) -> Figure:
        """A row for each picture: itself, then under each kind of map; of every map the brightest is its largest."""
        columns = 1 + len(self.maps)
        height, width = self.pictures.shape[1:3]
        each = 1.5
        drawn, axes = canvas.figure(
            len(self.pictures), columns, (each * columns, each * height / width * len(self.pictures) + 0.25)
        )
        for place, at in enumerate(axes):
            number, column = divmod(place, columns)
            picture = self.pictures[number]
            canvas.picture_only(at)
            if column == 0:
                at.imshow(picture)
            else:
                kind = list(self.maps)[column - 1]
                values, extent = self.maps[kind][number], (-0.5, width - 0.5, height - 0.5, -0.5)
                at.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
                at.imshow(values, cmap=canvas.HEAT, alpha=0.62, extent=extent, interpolation="bicubic", vmin=0)
                at.set(xlim=extent[:2], ylim=extent[2:])
            if number == 0:
                at.set_title("picture" if column == 0 else list(self.maps)[column - 1], fontsize=8)
        return drawn
