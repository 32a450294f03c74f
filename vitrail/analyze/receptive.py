"""Which pixels a feature depends on, and how far they lie: the effective receptive field by layer.

The squared gradient of a layer's centre cell with respect to every pixel (1701.04128, section 2; of ViTs, 2108.08810,
section 4): what a model makes of the picture, not what its architecture would allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def own_share(self) -> Array:
        """(L,): share of the energy on pixels of the cell itself."""
        down, across = self._offsets()
        half = self.cells / 2
        rows = (-half[:, :1] <= down) & (down < half[:, :1])  # (L, H)
        columns = (-half[:, 1:] <= across) & (across < half[:, 1:])  # (L, W)
        inside: Array = np.einsum("lhw,lh,lw->l", self.energy, rows, columns)
        return inside

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
        """Maps of layers from the first to the last, and the radii against depth.

        Raises:
            UserError: matplotlib is not installed.
        """
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


def compare(found: Mapping[str, ReceptiveField]) -> Figure:
    """Several models in one figure, a row of maps for each, by the name each shall have there.

    Raises:
        UserError: matplotlib is not installed.
    """
    columns = min(SHOWN, max(len(one.layers) for one in found.values()))
    rows, alone = len(found), len(found) == 1
    figure, axes = canvas.figure(
        rows, columns + 1, (1.15 * columns + 3.0, max(1.35 * rows + 0.35, 2.3)), width_ratios=[1] * columns + [2.5]
    )
    for row, (label, one) in enumerate(found.items()):
        shown = np.unique(np.linspace(0, len(one.layers) - 1, columns).round().astype(int))
        for column, place in enumerate(axes[row * (columns + 1) :][:columns]):
            canvas.picture_only(place)
            if column < len(shown):
                _picture(place, one, int(shown[column]))
        if label and not alone:
            axes[row * (columns + 1)].set_ylabel(label)
    curves = axes[columns]
    for below in axes[2 * columns + 1 :: columns + 1]:
        below.remove()
    place_of = curves.get_subplotspec()
    assert place_of is not None
    curves.set_subplotspec(place_of.get_gridspec()[:, columns])
    for number, (label, one) in enumerate(found.items()):
        depth = np.arange(1, len(one.layers) + 1) / (1 if alone else len(one.layers))
        colour = canvas.CYCLE[number % len(canvas.CYCLE)]
        curves.plot(
            depth, one.radius(0.5), color=colour, marker="o", markersize=3, label=label if not alone else "50 %"
        )
        curves.plot(
            depth, one.radius(0.9), color=colour, linestyle=(0, (4, 2)), linewidth=1, label="90 %" if alone else None
        )
    one = next(iter(found.values()))
    for share in (0.5, 0.9):
        height = float(one.uniform_radius(share)[-1])
        curves.axhline(height, color=canvas.SOFT, linewidth=0.7, linestyle=(0, (1, 2)))
        curves.text(1, height, f"uniform, {share:.0%}", transform=curves.get_yaxis_transform(), ha="right", va="bottom")
    curves.set_ylim(0)
    curves.set_xlabel("layer" if alone else "depth (share of layers)")
    curves.set_ylabel("radius (pixels)")
    curves.legend()
    return figure


def _picture(axes: Axes, one: ReceptiveField, layer: int) -> None:
    energy = one.energy[layer]
    shown = np.log10(np.maximum(energy / energy.max(), 10.0**-DECADES))
    axes.imshow(shown, cmap=canvas.HEAT, vmin=-DECADES, vmax=0)
    axes.set_title(one.layers[layer], fontsize=8.5, fontweight="normal")


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
