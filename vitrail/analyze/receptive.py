"""Which pixels a feature depends on, and how far they lie: the effective receptive field by layer.

The squared gradient of a layer's centre cell with respect to every pixel (1701.04128, section 2; of ViTs, 2108.08810,
section 4): what a model makes of the picture, not what its architecture would allow.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.analyze.maps import Maps, stride
from vitrail.config import Size, size_text
from vitrail.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Directions = Callable[[int], Tensor]
"""Width D of a layer -> directions (n, D) in which its features are looked at."""

DECADES = 4
"""Of energy that the maps show below their brightest pixel."""
SHOWN = 5
"""Maps in a figure's row."""


@dataclass(frozen=True, eq=False)
class ReceptiveField(Finding):
    """Where the centre cell's features of L layers come from, on average over images."""

    name: ClassVar[str] = "receptive-field"
    model: str
    images: int
    layers: tuple[str, ...]
    energy: Array
    """(L, H, W): each pixel's share of the squared gradient; a layer's sum to 1."""
    centres: Array
    """(L, 2): middle of the centre cell in pixels from the top left corner, down and across."""
    cells: Array
    """(L, 2): pixels to a cell, down and across."""

    def radius(self, share: float) -> Array:
        """(L,): pixels from the middle of the cell within which ``share`` of the energy lies."""
        return np.array([_radius(*pair, share) for pair in zip(self.energy, self._distances(), strict=True)])

    def uniform_radius(self, share: float) -> Array:
        """(L,): the same if every pixel mattered alike."""
        return np.array([_radius(np.full(away.shape, 1 / away.size), away, share) for away in self._distances()])

    def spread(self) -> Array:
        """(L,): root mean square distance of the energy from the middle of the cell, in pixels.

        A radius jumps from one pixel's distance to the next; this tells apart what differs by less.
        """
        found: Array = np.sqrt((self.energy * self._distances() ** 2).sum(axis=(1, 2)))
        return found

    def uniform_spread(self) -> Array:
        """(L,): the same if every pixel mattered alike."""
        found: Array = np.sqrt((self._distances() ** 2).mean(axis=(1, 2)))
        return found

    def spread_beyond(self) -> Array:
        """(L,): ``spread`` of the energy on pixels outside the cell alone; nan where there is none."""
        beyond = self.energy * ~self._own()
        total = beyond.sum(axis=(1, 2))
        there = np.where(total > 0, total, np.nan)
        found: Array = np.sqrt((beyond * self._distances() ** 2).sum(axis=(1, 2)) / there)
        return found

    def own_share(self) -> Array:
        """(L,): share of the energy on pixels of the cell itself."""
        inside: Array = (self.energy * self._own()).sum(axis=(1, 2))
        return inside

    def _own(self) -> Array:
        """(L, H, W): whether a pixel is the cell's own."""
        down, across = self._offsets()
        half = self.cells / 2
        rows = (-half[:, :1] <= down) & (down < half[:, :1])  # (L, H)
        columns = (-half[:, 1:] <= across) & (across < half[:, 1:])  # (L, W)
        own: Array = rows[:, :, None] & columns[:, None, :]
        return own

    def table(self) -> dict[str, Array]:
        """A row for each layer."""
        return {
            "model": np.full(len(self.layers), self.model),
            "layer": np.array(self.layers),
            "radius_50": self.radius(0.5),
            "radius_90": self.radius(0.9),
            "own_share": self.own_share(),
            "uniform_radius_50": self.uniform_radius(0.5),
            "uniform_radius_90": self.uniform_radius(0.9),
        }

    def summary(self) -> dict[str, Any]:
        """The first and the last layer, radii in pixels."""
        rows = self.table()
        kept = [name for name in rows if name not in ("model", "layer")]
        ends = [{"layer": self.layers[at]} | {name: float(rows[name][at]) for name in kept} for at in (0, -1)]
        return {"model": self.model, "images": self.images, "first": ends[0], "last": ends[1]}

    def plot(self) -> Figure:
        """Maps of layers from the first to the last, and the radii against depth."""
        return compare({self.model: self})

    def _offsets(self) -> tuple[Array, Array]:
        """Down (L, H) and across (L, W), from the cell's middle to that of each pixel."""
        _, H, W = self.energy.shape
        return np.arange(H) + 0.5 - self.centres[:, :1], np.arange(W) + 0.5 - self.centres[:, 1:]

    def _distances(self) -> Array:
        """(L, H, W), in pixels."""
        down, across = self._offsets()
        away: Array = np.hypot(down[:, :, None], across[:, None])
        return away


def _radius(energy: Array, distance: Array, share: float) -> float:
    order = np.argsort(distance, axis=None)
    within = np.cumsum(energy.ravel()[order])
    reached = int(np.searchsorted(within, (share - 1e-12) * within[-1]))
    return float(distance.ravel()[order[reached]])


@canvas.styled
def compare(found: Mapping[str, ReceptiveField]) -> Figure:
    """Several models in one figure, a row of maps for each, by the name each shall have there."""
    columns = min(SHOWN, max(len(one.layers) for one in found.values()))
    rows, alone = len(found), len(found) == 1
    size = (max(1.35 * columns + 0.8, 5.2), 1.45 * rows + 2.5)
    figure, axes = canvas.figure(rows + 1, columns, size, height_ratios=[1] * rows + [1.6])
    for row, (label, one) in enumerate(found.items()):
        places = axes[row * columns :][:columns]
        for place in places:
            canvas.picture_only(place)
        shown = np.unique(np.linspace(0, len(one.layers) - 1, columns, dtype=int)).tolist()
        for place, layer in zip(places, shown, strict=False):
            image = _picture(place, one, layer)
        if not alone:
            places[0].set_ylabel(textwrap.fill(label, 14), fontsize=8)
    bar = figure.colorbar(image, ax=axes[: rows * columns], aspect=12 * rows, ticks=[-DECADES, 0])
    bar.ax.set_yticklabels([f"$10^{{-{DECADES}}}$", "1"])
    bar.set_label("energy (largest: 1)", fontsize=8, labelpad=-8)
    _radii(_one_row(axes[rows * columns :]), found)
    if not alone:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _radii(axes: Axes, found: Mapping[str, ReceptiveField]) -> None:
    alone = len(found) == 1
    for number, (label, one) in enumerate(found.items()):
        depth = np.arange(1, len(one.layers) + 1) / (1 if alone else len(one.layers))
        colour = canvas.CYCLE[number % len(canvas.CYCLE)]
        axes.plot(depth, one.radius(0.5), "o-", color=colour, markersize=3.5, label=label)
        axes.plot(depth, one.radius(0.9), "o--", color=colour, markersize=2.5, linewidth=1)
    across = axes.get_yaxis_transform()
    for share in (0.5, 0.9):  # of the other models it differs by less than a cell
        height, text = float(one.uniform_radius(share)[-1]), f"all pixels alike, {100 * share:.0f} %"
        axes.axhline(height, color=canvas.SOFT, linewidth=0.9, linestyle=":")
        axes.text(0.01, height, text, transform=across, va="bottom", fontsize=8)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    if alone:
        axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="layer" if alone else "depth, as a share of the layers", ylabel="pixels")
    axes.set_title("Radius that holds 50 % (solid) and 90 % (dashed) of the energy")


def _one_row(axes: Sequence[Axes]) -> Axes:
    """The first of some axes beside one another, taking the place of all."""
    first, *others = axes
    for other in others:
        other.remove()
    place = first.get_subplotspec()
    assert place is not None
    first.set_subplotspec(place.get_gridspec()[place.rowspan.start, :])
    return first


def _picture(axes: Axes, one: ReceptiveField, layer: int) -> AxesImage:
    energy = one.energy[layer]
    axes.set_title(one.layers[layer], fontsize=8.5, fontweight="normal")
    return axes.imshow(np.log10(np.maximum(energy / energy.max(), 10.0**-DECADES)), vmin=-DECADES, vmax=0)


def receptive_field(
    maps: Maps,
    images: Tensor,
    size: Size,
    projections: int = 1,
    seed: int = 0,
    directions: Directions | None = None,
    model: str = "",
    batch_size: int = 4,
) -> ReceptiveField:
    """Which pixels the features of every layer's centre cell depend on.

    With J the Jacobian of the cell's D features by one pixel's channels, the energy is |J^T v|^2 averaged over random
    unit vectors v, which is |J|^2 / D (Frobenius) in expectation. It is averaged over images and then normalised, so
    an image counts by the size of its gradient. One forward pass of a batch serves all layers.

    Args:
        maps: see ``feature_maps``, in evaluation mode; parameters get no gradient.
        images: (B, C, >= H, >= W), preprocessed; the middle of ``size`` is looked at.
        size: (H, W), what the model takes.
        projections: random directions for each image and layer; they depend on the seed and on which image and
            layer it is, alone.
        directions: these instead, of the same images each: ``torch.eye`` gives |J|^2 exactly.
        model: what to call it.
        batch_size: images that are run at once.

    Raises:
        UserError: the images are smaller than the size, or the maps carry no gradient.
    """
    if images.ndim != 4 or not len(images) or min(images.shape[2] - size[0], images.shape[3] - size[1]) < 0:
        raise UserError(f"There must be images of at least {size_text(size)} pixels, not {tuple(images.shape)}.")
    if projections < 1:
        raise UserError(f"At least one projection is needed, not {projections}.")
    top, left = (images.shape[2] - size[0]) // 2, (images.shape[3] - size[1]) // 2
    images = images[:, :, top : top + size[0], left : left + size[1]]
    layers: tuple[str, ...] = ()
    energy = cells = centres = np.zeros(0)
    for start in range(0, len(images), batch_size):
        pixels = images[start : start + batch_size].detach().clone().requires_grad_()
        with torch.enable_grad():
            seen = maps(pixels)
        if not layers:
            layers, energy = tuple(name for name, _ in seen), np.zeros((len(seen), *size))
            cells = np.array([[float(side) for side in stride(size, features)] for _, features in seen])  # (L, 2)
            grids = np.array([features.shape[2:] for _, features in seen])  # (L, 2)
            # Maps lie in the middle of the picture, whatever padding added to it or took.
            centres = (grids // 2 + 0.5) * cells + (np.array(size) - grids * cells) / 2
        for layer, (_, features) in enumerate(seen):
            if not features.requires_grad:
                raise UserError("The feature maps carry no gradient: hand in maps that do not switch it off.")
            with torch.enable_grad():
                centre = features[:, :, features.shape[2] // 2, features.shape[3] // 2]  # (B, D)
            width = centre.shape[1]
            if directions is None:
                drawn = [_drawn((projections, width), (seed, start + at, layer)) for at in range(len(pixels))]
                along = torch.stack(drawn, dim=1)  # (n, B, D)
            else:
                along = directions(width)[:, None].expand(-1, len(pixels), -1)
            for vectors in along.to(centre):
                (gradient,) = torch.autograd.grad(centre, pixels, vectors, retain_graph=True)  # (B, C, H, W)
                energy[layer] += gradient.double().square().sum(dim=(0, 1)).cpu().numpy() / len(along)
    total = energy.sum(axis=(1, 2), keepdims=True)
    if not (total > 0).all():
        raise UserError("A layer's centre cell depends on no pixel: there is no receptive field to show.")
    return ReceptiveField(model, len(images), layers, energy / total, centres, cells)


def _drawn(shape: tuple[int, int], seed: tuple[int, int, int]) -> Tensor:
    """(n, D) random unit vectors."""
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
