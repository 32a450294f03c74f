"""What a patch embedding looks at: principal components of its filters (ViT figure 7 left; article 6.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.config import size_text
from vitrail.errors import UserError
from vitrail.model.vision import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Source = Literal["patch embedding", "root convolution"]


@dataclass(frozen=True, eq=False)
class PatchFilters(Finding):
    """The patterns of which all filters are mixtures, the most frequent first."""

    name: ClassVar[str] = "patch-filters"

    source: Source
    """Whose filters: the patch embedding's or, in a hybrid, those of its stem's first convolution."""
    filters: int
    """How many there are: D of a patch embedding."""
    components: Array
    """(n, C, P, P), orthonormal. A sign means nothing: the first weight within 1 % of the largest is positive."""
    spectrum: Array
    """Share of the filters' variance along every component there is, largest first; the first n are those above."""

    @property
    def explained(self) -> Array:
        """Share of the variance along each of ``components``: (n,)."""
        return self.spectrum[: len(self.components)]

    def smoothness(self) -> Array:
        """Share of each component's energy in the lowest quarter of the plane of spatial frequencies, (n,).

        That is at half of the highest frequency or below, down and across: 1 where the pattern is flat,
        a quarter on average for white noise. What lies on the border counts half for each way.
        """
        energy = np.abs(np.fft.fft2(self.components)) ** 2  # (n, C, P, P)
        down, across = (_low(length) for length in self.components.shape[2:])
        share: Array = (energy * down[:, None] * across).sum((1, 2, 3)) / energy.sum((1, 2, 3))
        return share

    def table(self) -> dict[str, Array]:
        """A row for each weight of each component; all count from 1."""
        names = ("component", "channel", "row", "column")
        places = dict(zip(names, (1 + axis.ravel() for axis in np.indices(self.components.shape)), strict=True))
        return {**places, "value": self.components.ravel()}

    def summary(self) -> dict[str, Any]:
        """Shares of the variance, how many components hold 50, 90 and 95 % of it, and how smooth the first are."""
        held = np.cumsum(self.spectrum)
        shares = {
            f"components_for_{percent}": int(np.searchsorted(held, percent / 100 - 1e-9)) + 1
            for percent in (50, 90, 95)
        }
        return {
            "source": self.source,
            "filters": self.filters,
            "shape": list(self.components.shape[1:]),
            "components": len(self.components),
            "components_in_all": len(self.spectrum),
            "explained": [float(share) for share in self.explained],
            "explained_together": float(self.explained.sum()),
            **shares,
            "smoothness": [float(share) for share in self.smoothness()],
        }

    @canvas.styled
    def plot(self) -> Figure:
        """The components as pictures, with the share of the variance of each (ViT figure 7 left).

        Zero is mid-grey and the largest weight, of either sign, full strength. Three channels are red,
        green and blue, one is grey; of any other number the first three are shown, as the title says, and
        where there are two, blue stays at zero.

        Raises:
            UserError: matplotlib is not installed.
        """
        count, channels = self.components.shape[:2]
        columns = min(count, math.ceil(math.sqrt(count * 7 / 4)))
        rows = -(-count // columns)
        drawn, axes = canvas.figure(rows, columns, size=(max(0.86 * columns, 4.0), 1.0 * rows + 0.5))
        for number, part in enumerate(axes):
            canvas.picture_only(part)
            if number < count:
                part.imshow(_picture(self.components[number]), cmap="gray", vmin=0, vmax=1)
                share = f"{100 * self.explained[number]:.1f} %"
                part.set_title(share, loc="center", fontsize=7, fontweight="normal", color=canvas.SOFT, pad=2)
        of = f"{size_text(self.components.shape[2:])} {self.source}"
        shown = {1: "", 2: "\nchannels as red and green", 3: ""}.get(
            channels, f"\nfirst 3 of {channels} channels as red, green and blue"
        )
        title = f"Principal components: {of}{shown}"
        drawn.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        return drawn


def patch_filters(model: VisionTransformer, components: int = 28) -> PatchFilters:
    """Principal components of the filters that patches are embedded with, mean filter taken off; ViT shows 28.

    A hybrid's patch embedding reads hundreds of channels of a feature map, so there it is the kernels
    of the stem's first convolution, standardised as the model uses them.

    Args:
        components: how many to keep; where there are fewer, all.

    Raises:
        UserError: ``components`` is below 1, or the filters do not differ or are not finite.
    """
    if components < 1:
        raise UserError(f"At least 1 component can be shown, not {components}.")
    stem = model.stem
    kernels = model.patches.projection.weight if stem is None else stem.root.standardised()
    weight = kernels.detach().float().cpu().numpy().astype(np.float64)  # (D, C, P, P)
    if not np.isfinite(weight).all():
        raise UserError("The patch filters are not finite: the model's weights are damaged, so load them anew.")
    flat = weight.reshape(len(weight), -1)  # (D, C P P)
    _, deviations, patterns = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    rounding = np.finfo(np.float32).eps * np.linalg.norm(flat)
    there = int((deviations > rounding).sum())
    if not there:
        raise UserError(
            "The patch filters are all the same, so they have no principal components: load trained weights."
        )
    variances = np.square(deviations[:there])
    kept = _signed(patterns[: min(components, there)])
    return PatchFilters(
        source="patch embedding" if stem is None else "root convolution",
        filters=len(weight),
        components=kept.reshape(-1, *weight.shape[1:]),
        spectrum=variances / variances.sum(),
    )


def _signed(patterns: Array) -> Array:
    """Each of (n, C P P) times 1 or -1.

    A pattern of two like halves of opposite sign has two largest weights: rounding must not choose.
    """
    large = np.abs(patterns) >= 0.99 * np.abs(patterns).max(1, keepdims=True)
    first = np.take_along_axis(patterns, large.argmax(1)[:, None], axis=1)  # (n, 1)
    signed: Array = patterns * np.sign(first)
    return signed


def _low(length: int) -> Array:
    """How much of each of the ``length`` frequencies of a Fourier transform is low: (length,)."""
    frequencies = np.abs(np.fft.fftfreq(length))  # up to 1/2
    low: Array = (frequencies < 0.25) + 0.5 * (frequencies == 0.25)
    return low


def _picture(component: Array) -> Array:
    """(C, P, P) -> numbers in [0, 1], (P, P) of one channel or (P, P, 3)."""
    shown = component[:3]
    scaled: Array = 0.5 + shown / (2 * np.abs(shown).max() or 1.0)
    if len(scaled) == 1:
        return np.asarray(scaled[0])
    blank = np.full((3 - len(scaled), *scaled.shape[1:]), 0.5)
    picture: Array = np.concatenate([scaled, blank]).transpose(1, 2, 0)
    return picture
