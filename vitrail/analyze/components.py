"""Principal components of patch features, and the first three of them as colours (DINOv2, 2304.07193, figure 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.analyze.stream import Kind, Statistic
from vitrail.config import Size, ViTConfig
from vitrail.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = 3
"""Components that become colours: red, green and blue."""


@dataclass(frozen=True, eq=False)
class PatchComponents(Finding):
    """The principal components of the patches' features over all images."""

    name: ClassVar[str] = "patch-components"

    mean: Array
    """(D,)"""
    variances: Array
    """(D,) along each component, largest first; none is negative."""
    components: Array
    """(3, D), or (D, D) where D is less: unit vectors. Each one's largest entry is positive, so that signs
    are no accident."""
    grid: Size
    patches: int
    """How many came together, of all images."""

    @property
    def explained(self) -> Array:
        """(D,) share of the variance along each component; all 0 if there is no variance."""
        total = self.variances.sum()
        shares: Array = self.variances / total if total > 0 else np.zeros_like(self.variances)
        return shares

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of ``explained`` (Roy and Vetterli 2007): D if all variances are equal, 1 if all but one
        are 0."""
        shares = self.explained[self.explained > 0]
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def needed(self, share: float) -> int:
        """How many components it takes for this share of the variance."""
        return min(int(np.searchsorted(self.explained.cumsum(), share)) + 1, len(self.variances))

    def colours(self, z: Array, percentile: float = 2.0) -> Array:
        """Features (n, h w, D) of the patches of n images -> colours (n, h, w, 3) in [0, 1].

        The first three components become red, green and blue, each stretched over what is shown here: from
        its ``percentile`` to 100 minus that. DINOv2's figure takes the background out first, by a threshold
        on the first component, and the components anew from the rest; here they are those of all patches.

        Args:
            z: as the statistic took them in, so normalised if it was given a ``norm``.
        """
        centred = np.asarray(z, np.float64) - self.mean  # (n, h w, D)
        places = centred @ self.components.T  # (n, h w, 3)
        low, high = np.percentile(places, [percentile, 100 - percentile], axis=(0, 1))  # (3,) each
        scaled = np.clip((places - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
        scaled = np.pad(scaled, ((0, 0), (0, 0), (0, COLOURS - scaled.shape[2])))
        return scaled.reshape(len(scaled), *self.grid, COLOURS)

    def table(self) -> dict[str, Array]:
        """A row for each component, counted from 1."""
        return {
            "component": np.arange(1, len(self.variances) + 1),
            "variance": self.variances,
            "explained": self.explained,
            "cumulative": self.explained.cumsum(),
        }

    def summary(self) -> dict[str, Any]:
        """How many dimensions are used."""
        return {
            "patches": self.patches,
            "width": len(self.variances),
            "explained_by_first_three": self.explained[:COLOURS].tolist(),
            "effective_rank": self.effective_rank,
            "components_for_90_percent": self.needed(0.9),
            "components_for_99_percent": self.needed(0.99),
        }

    @canvas.styled
    def plot(self) -> Figure:
        """The spectrum: what each component explains, and what all up to it do."""
        drawn, (single, together) = canvas.figure(1, 2, size=(8.4, 3.3))
        number, cumulative = np.arange(1, len(self.variances) + 1), self.explained.cumsum()
        seen = self.explained > 1e-7  # below is what rounding leaves
        single.loglog(number[seen], self.explained[seen], color=canvas.BLUE, lw=1.8)
        for i, colour in enumerate((canvas.RUBY, canvas.GREEN, canvas.BLUE)[: seen.sum()]):
            single.plot(number[i], self.explained[i], "o", color=colour, ms=6)
        single.xaxis.set_major_formatter("{x:g}")
        single.yaxis.set_major_formatter(canvas.percent)
        single.set(xlabel="component", ylabel="share of the variance", title="Variance along each component")
        together.plot(number, cumulative, color=canvas.BLUE, lw=1.8)
        rank = self.effective_rank
        together.axvline(rank, color=canvas.AMBER, ls="--", lw=1.4, label=f"effective rank, {rank:.1f}")
        for share in (0.9, 0.99):
            count = self.needed(share)
            place = (count, float(cumulative[count - 1]))
            together.plot(*place, "o", color=canvas.RUBY, ms=5)
            note = f"{canvas.percent(share)} along {count}"
            together.annotate(note, place, (6, -12), textcoords="offset points", color=canvas.RUBY, fontsize=8)
        together.yaxis.set_major_formatter(canvas.percent)
        together.set(xlabel="components", title="Along the first so many together")
        together.set_ylim(0, 1.04)
        together.legend(loc="lower right", fontsize=8)
        return drawn


class PatchCovariance(Statistic):
    """Accumulates the mean and covariance, (D, D), of one layer's patches for ``PatchComponents``.

    Each batch's products are formed in float32 around its own mean, and merged in float64: squared sums
    around zero would lose small variances beside a large mean.
    """

    def __init__(
        self, config: ViTConfig, layer: int | None = None, norm: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """``layer`` counts from 0, by default the last; ``norm``, such as the model's final LayerNorm, goes first."""
        self.layer = config.encoder.layers - 1 if layer is None else layer
        self.blocks = (self.layer,)
        self.special, self.grid, self.norm = len(config.tokens), config.grid, norm
        width = config.encoder.width
        self.count, self.mean, self.scatter = 0, np.zeros(width), np.zeros((width, width))

    def receive(self, kind: Kind, layer: int, values: Tensor) -> None:
        """A block's output (B, N, D)."""
        patches = self.features(values)
        if not patches.numel():
            return
        flat = patches.detach().flatten(0, 1)  # (B h w, D)
        middle = flat.mean(dim=0)
        flat = flat - middle
        scatter = (flat.T @ flat).cpu().double().numpy()
        mean = middle.cpu().double().numpy()
        gap, count = mean - self.mean, self.count + len(flat)
        self.scatter += scatter + np.outer(gap, gap) * (self.count * len(flat) / count)
        self.mean += gap * (len(flat) / count)
        self.count = count

    def features(self, values: Tensor) -> Tensor:
        """A block's output (B, N, D) -> its patches as they are taken in, (B, h w, D), for ``colours``."""
        patches = values[:, self.special :]  # (B, h w, D)
        return (patches if self.norm is None else self.norm(patches)).float()

    def finding(self) -> PatchComponents:
        """What has come together.

        Raises:
            UserError: there was no image, or the features are not finite.
        """
        if self.count < 2:
            raise UserError("There are no patches to find components of: name a folder that holds some images.")
        if not np.isfinite(self.scatter).all():
            raise UserError(
                "The features of the patches are not finite: the model's weights are damaged, load them anew."
            )
        variances, vectors = np.linalg.eigh(self.scatter / (self.count - 1))  # ascending
        components = vectors[:, ::-1].T[:COLOURS]
        largest = np.take_along_axis(components, np.abs(components).argmax(axis=1, keepdims=True), axis=1)
        return PatchComponents(
            mean=self.mean.copy(),
            variances=variances[::-1].clip(min=0.0),
            components=components * np.sign(largest),
            grid=self.grid,
            patches=self.count,
        )


@canvas.styled
def draw_colours(pictures: Array, colours: Array, columns: int = 4) -> Figure:
    """Pictures (n, H, W, 3), in [0, 1] or bytes, each beside its patches' colours (n, h, w, 3), ``columns`` to a row.

    Raises:
        UserError: matplotlib is not installed, or there is no picture.
    """
    if not len(pictures):
        raise UserError("There is no picture to draw: give at least one.")
    across = min(columns, len(pictures))
    rows = -(-len(pictures) // across)
    height = 1.3 * pictures.shape[1] / pictures.shape[2]
    drawn, axes = canvas.figure(rows, 2 * across, size=(2.66 * across, (height + 0.05) * rows))
    drawn.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    for panel in axes:
        canvas.picture_only(panel)
    for panel, image in zip(
        axes, (image for pair in zip(pictures, colours, strict=True) for image in pair), strict=False
    ):
        # Both in one frame, whatever the grid's own proportions.
        panel.imshow(image, extent=(0, pictures.shape[2], pictures.shape[1], 0), interpolation="nearest")
    return drawn
