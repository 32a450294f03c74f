"""Whether features move along with the picture: translation equivariance, layer by layer (article 6.2.1).

f(g(x)) = g(f(x)) for a convolution f and a translation g; a ViT's positions break it, and any shift that is no whole
number of patches cuts the picture into other patches. CNNs break it too: by strides (1805.12177, 1904.11486), by
padding, which is felt ever further inside, and by GroupNorm, which looks at the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.analyze.maps import Maps, stride
from vitrail.analyze.moments import Moments
from vitrail.config import Size, size_text
from vitrail.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mode = Literal["crop", "roll"]


@dataclass(frozen=True, eq=False)
class Equivariance(Finding):
    """How far features are from moving along, for L layers, S shifts and B images."""

    name: ClassVar[str] = "equivariance"
    model: str
    mode: Mode
    layers: tuple[str, ...]
    strides: tuple[tuple[Fraction, Fraction], ...]
    """Pixels to a cell of each layer's map, down and across."""
    margins: tuple[int, ...]
    """Cells at every border of each layer's map that were not counted."""
    shifts: tuple[int, ...]
    """In pixels, rising."""
    errors: Array
    """(L, S, B): 0 where features move along, 1 where they are as different as unrelated cells; NaN where the map
    has too few cells for the shift."""
    cosines: Array
    """(L, S, B): cosine similarity of the features compared, a mean over cells; they are not centred."""

    def interval(self) -> tuple[Array, Array, Array]:
        """Mean error over images and its 95 % t interval, (L, S) each; the interval of a single image is NaN."""
        moments = Moments(self.errors.shape[:2])
        moments.add(np.moveaxis(self.errors, 2, 0))
        return moments.mean, *moments.interval()

    def table(self) -> dict[str, Array]:
        """A row for each layer and shift whose map has cells enough."""
        mean, low, high = self.interval()
        layer, shift = np.nonzero(~np.isnan(mean))
        return {
            "model": np.full(len(layer), self.model),
            "layer": np.array(self.layers)[layer],
            "shift": np.array(self.shifts)[shift],
            "cells": np.array([self._cells(*at) for at in zip(layer.tolist(), shift.tolist(), strict=True)]),
            "error": mean[layer, shift],
            "low": low[layer, shift],
            "high": high[layer, shift],
            "cosine": self.cosines.mean(axis=2)[layer, shift],
        }

    def summary(self) -> dict[str, Any]:
        """Errors of the last layer at its half and whole cell and at the smallest shift, null if not measured."""
        last = len(self.layers) - 1
        smallest = next((number for number, shift in enumerate(self.shifts) if shift), None)
        return {
            "model": self.model,
            "mode": self.mode,
            "images": self.errors.shape[2],
            "layer": self.layers[last],
            "pixels_to_a_cell": [float(pixels) for pixels in self.strides[last]],
            "smallest_shift": self._quoted(last, smallest),
            "half_cell": self._quoted(last, self._at(last, Fraction(1, 2))),
            "whole_cell": self._quoted(last, self._at(last, Fraction(1))),
            "whole_cell_by_layer": {
                name: self._quoted(layer, self._at(layer, Fraction(1))) for layer, name in enumerate(self.layers)
            },
        }

    @canvas.styled
    def plot(self) -> Figure:
        """Error of the last layer against the shift, with its interval; the other layers behind it."""
        figure, (axes,) = canvas.figure(size=(5.2, 3.6))
        mean, _, _ = self.interval()
        last = len(self.layers) - 1
        for layer in range(last):
            label = f"{self.layers[0]} (lightest) to {self.layers[last - 1]}" if layer == last - 1 else None
            strength = 0.2 + 0.5 * layer / last
            axes.plot(self.shifts, mean[layer], color=canvas.SOFT, alpha=strength, linewidth=1, label=label)
        self._curve(axes, canvas.BLUE, self.layers[last])
        _frame(figure, axes, self.shifts, self.strides[last][1])
        if self.model:
            axes.set_title(f"Translation equivariance: {self.model}")
        return figure

    def _curve(self, axes: Axes, colour: str, label: str) -> None:
        """The last layer's; dots stand at whole cells."""
        mean, low, high = (values[-1] for values in self.interval())
        last = len(self.layers) - 1
        whole = [number for number in range(len(self.shifts)) if self._cells(last, number).is_integer()]
        axes.fill_between(self.shifts, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            self.shifts, mean, color=colour, linewidth=1.8, label=label, marker="o", markersize=4.5, markevery=whole
        )

    def _cells(self, layer: int, shift: int) -> float:
        """A shift in cells, the mean of both axes."""
        return float(sum(self.shifts[shift] / pixels for pixels in self.strides[layer]) / 2)

    def _at(self, layer: int, cells: Fraction) -> int | None:
        """The shift that is so many cells of the layer, along both axes."""
        wanted = {pixels * cells for pixels in self.strides[layer]}
        return next((number for number, shift in enumerate(self.shifts) if {shift} == wanted), None)

    def _quoted(self, layer: int, shift: int | None) -> dict[str, float | None] | None:
        if shift is None:
            return None
        error, low, high = (float(values[layer, shift]) for values in self.interval())
        found = {"shift": float(self.shifts[shift]), "error": error, "low": low, "high": high}
        return {name: None if math.isnan(value) else value for name, value in found.items()}


@canvas.styled
def compare(found: Mapping[str, Equivariance]) -> Figure:
    """The last layers of several models in one figure, by the name each shall have there."""
    figure, (axes,) = canvas.figure(size=(5.2, 3.6))
    for number, (label, one) in enumerate(found.items()):
        one._curve(axes, canvas.CYCLE[number % len(canvas.CYCLE)], label)
    strides = {one.strides[-1][1] for one in found.values()}
    shifts = sorted({shift for one in found.values() for shift in one.shifts})
    _frame(figure, axes, shifts, strides.pop() if len(strides) == 1 else None)
    return figure


def _frame(figure: Figure, axes: Axes, shifts: Sequence[int], cell: Fraction | None) -> None:
    """Ticks at whole cells where there is one size of them, and what the heights mean."""
    if cell is not None:
        step = max(1, math.ceil(max(shifts) / cell / 8))  # no more than eight
        axes.set_xticks([float(cell) * number for number in range(0, int(max(shifts) / cell) + 1, step)])
    axes.axhline(1.0, color=canvas.SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.text(0.995, 1.012, "unrelated cells", transform=axes.get_yaxis_transform(), ha="right", fontsize=8)
    axes.set_ylim(0.0, max(1.1, axes.get_ylim()[1]))
    axes.margins(x=0.01)
    axes.set(xlabel="shift in pixels (dots: whole cells)", ylabel="error", title="Translation equivariance")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)


def equivariance(
    maps: Maps,
    images: Tensor,
    shifts: Sequence[int],
    size: Size,
    mode: Mode = "crop",
    margin: int | None = None,
    model: str = "",
    batch_size: int = 8,
) -> Equivariance:
    """Compare the features F of shifted images with the features of the images, shifted.

    For a shift of s pixels and a map with a cell every P pixels, F(shifted) at a cell is held against F(images) s/P
    cells further on, and where that lies between two cells, against what is linearly between their features. The
    error is the mean squared difference, divided by that of two different random cells of these maps (twice the
    variance over cells and images, worked out, not drawn): 0 is perfect, 1 is no more alike than unrelated patches.
    Between cells the mean of two varies less, so unrelated features give less: 3/4 at half a cell. Shifts to the
    right and down are averaged.

    Args:
        maps: see ``feature_maps``; run without gradients on a few images at a time.
        images: preprocessed. In mode crop (B, C, H + S, W + S): a window of ``size`` moves by s <= S pixels, so real
            pixels come in on one side and others leave, which changes what the rest is seen beside. In mode roll
            (B, C, H, W): what leaves comes in again on the other side, and a seam travels through the picture.
        shifts: in pixels, each >= 0.
        size: (H, W), what the model takes.
        margin: cells left out at every border of both maps, before and after the move, where padding is felt; None: a
            quarter of a layer's grid or, if that is too much for the largest shift, as many as leave two cells.
            In mode roll 0 means that maps wrap as pictures do. A layer too small for a shift gives NaN there.
        model: what to call it.
        batch_size: images that are run at once.

    Raises:
        UserError: images or shifts do not fit the size.
    """
    shifts = tuple(sorted(set(shifts)))
    _check(images, shifts, size, mode, margin)
    layers: tuple[str, ...] = ()
    measures: list[_Layer] = []
    for batch in torch.split(images, batch_size):
        with torch.no_grad():
            base = maps(batch[:, :, : size[0], : size[1]])
            if not measures:
                layers = tuple(name for name, _ in base)
                measures = [_Layer(features, size, shifts, mode, margin) for _, features in base]
            for measure, (_, features) in zip(measures, base, strict=True):
                measure.begin(features)
            for shift, axis, moved in _shifted(batch, shifts, size, mode):
                there = maps(moved) if shifts[shift] else base
                for measure, (_, before), (_, after) in zip(measures, base, there, strict=True):
                    measure.compare(shift, axis, before, after)
    return Equivariance(
        model=model,
        mode=mode,
        layers=layers,
        strides=tuple(measure.stride for measure in measures),
        margins=tuple(measure.margin for measure in measures),
        shifts=shifts,
        errors=np.stack([measure.errors() for measure in measures]),
        cosines=np.stack([measure.cosines() for measure in measures]),
    )


class _Layer:
    """What is gathered for one layer while batches pass."""

    def __init__(self, features: Tensor, size: Size, shifts: Sequence[int], mode: Mode, margin: int | None) -> None:
        grid = features.shape[2:]
        self.stride = stride(size, features)
        self.wraps = mode == "roll" and margin == 0
        if margin is None:
            reach = max(math.ceil(max(shifts) / pixels) for pixels in self.stride)
            margin = max(0, min(min(grid) // 4, (min(grid) - reach - 2) // 2))
        self.margin, self.shifts = margin, shifts
        self._differences: list[Array] = []  # (S, 2, B) a batch
        self._cosines: list[Array] = []
        self._cells = Moments((features.shape[1],))

    def begin(self, features: Tensor) -> None:
        """Take in the unshifted maps (B, D, h, w) of a new batch: how much do features vary?"""
        self._cells.add(_inside(features, self.margin).movedim(1, -1).flatten(0, 2))  # (B h w, D)
        for kept in (self._differences, self._cosines):
            kept.append(np.full((len(self.shifts), 2, len(features)), np.nan))

    def compare(self, shift: int, axis: int, before: Tensor, after: Tensor) -> None:
        """Hold maps (B, D, h, w) of images moved by a shift along an axis (0 down, 1 right) against the unmoved."""
        by = self.shifts[shift] / self.stride[axis]
        whole, between = int(by), float(by % 1)
        expected = before.roll(-whole, axis + 2)
        if between:
            expected = torch.lerp(expected, before.roll(-whole - 1, axis + 2), between)
        expected, after = _inside(expected, self.margin), _inside(after, self.margin)
        if not self.wraps:  # the last cells have moved in from a border, or from beyond it
            left = max(0, expected.shape[axis + 2] - math.ceil(by))
            expected, after = expected.narrow(axis + 2, 0, left), after.narrow(axis + 2, 0, left)
        if expected.numel():
            apart = (after - expected).double().square().sum(dim=1)  # (B, h, w)
            self._differences[-1][shift, axis] = apart.mean(dim=(1, 2)).cpu().numpy()
            alike = F.cosine_similarity(after.double(), expected.double(), dim=1)
            self._cosines[-1][shift, axis] = alike.mean(dim=(1, 2)).cpu().numpy()

    def errors(self) -> Array:
        """(S, B), the mean of both axes."""
        # All pairs of n different cells differ by twice the unbiased variance on average.
        unrelated = 2 * float(self._cells.variance.sum()) or math.nan
        return _over_axes(self._differences) / unrelated

    def cosines(self) -> Array:
        """(S, B), the mean of both axes."""
        return _over_axes(self._cosines)


def _over_axes(batches: list[Array]) -> Array:
    """(S, 2, B) a batch -> (S, B)."""
    mean: Array = np.concatenate(batches, axis=2).mean(axis=1)
    return mean


def _inside(features: Tensor, margin: int) -> Tensor:
    """(B, D, h, w) without ``margin`` cells at every border."""
    h, w = features.shape[2:]
    return features[:, :, margin : max(h - margin, margin), margin : max(w - margin, margin)]


def _shifted(batch: Tensor, shifts: Sequence[int], size: Size, mode: Mode) -> Iterator[tuple[int, int, Tensor]]:
    """Number of the shift, axis (0 down, 1 right), and images (B, C, H, W) seen from so many pixels further on."""
    for number, shift in enumerate(shifts):
        for axis in range(2):
            if mode == "roll":
                yield number, axis, batch.roll(-shift, axis + 2)
            else:
                yield number, axis, batch.narrow(axis + 2, shift, size[axis])[:, :, : size[0], : size[1]]


def _check(images: Tensor, shifts: Sequence[int], size: Size, mode: Mode, margin: int | None) -> None:
    if not shifts or shifts[0] < 0 or (margin is not None and margin < 0):
        raise UserError(f"Shifts and margin are 0 or more, and there is at least one shift: not {shifts}, {margin}.")
    if images.ndim != 4 or not len(images):
        raise UserError(f"There must be images (B, C, H, W) to shift, not {tuple(images.shape)}.")
    given = (images.shape[2], images.shape[3])
    needed = size if mode == "roll" else (size[0] + shifts[-1], size[1] + shifts[-1])
    if given != needed if mode == "roll" else min(given[0] - needed[0], given[1] - needed[1]) < 0:
        raise UserError(
            f"Shifts of up to {shifts[-1]} pixels in mode {mode} need images of {size_text(needed)} pixels for a model "
            f"of {size_text(size)}, not {size_text(given)}: prepare them at that size."
        )
