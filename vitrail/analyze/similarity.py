"""How alike layers are: linear CKA (1905.00414), between all layers of a ViT as in 2108.08810, section 3."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.analyze.stream import Forward, Kind, Statistic, observe
from vitrail.config import ViTConfig
from vitrail.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 4
"""Images without which the unbiased estimator does not exist."""


def cka(x: Array, y: Array) -> float:
    """Linear CKA of features (n, p) and (n, q) of the same n images (1905.00414, section 3), biased as there.

    ||Y^T X||^2 / (||X^T X|| ||Y^T Y||) of centred columns: 1 for a rotation, a scaling and a shift of one another.

    Raises:
        UserError: the images differ in number, or one of the two does not vary.
    """
    if len(x) != len(y):
        raise UserError(f"{len(x)} and {len(y)} rows cannot be compared: give features of the same images.")
    x, y = (np.asarray(z, np.float64) - np.mean(z, axis=0, dtype=np.float64) for z in (x, y))
    if len(x) > max(x.shape[1], y.shape[1]):
        shared, own = np.square(y.T @ x).sum(), (x.T @ x, y.T @ y)
    else:  # the same from the images' inner products, of which there are fewer
        own = (x @ x.T, y @ y.T)
        shared = (own[0] * own[1]).sum()
    scale = np.linalg.norm(own[0]) * np.linalg.norm(own[1])
    if not scale > 0:
        raise UserError("Features that are the same for every image are like no others: give some that vary.")
    return float(shared / scale)


def gram(features: Tensor) -> Tensor:
    """Features (B, ...) -> inner products of the images, (B, B) float64, as the unbiased HSIC needs them.

    They are U-centred: like double centring, but the diagonal has no part in it (1310.2926, definition 2).
    HSIC_1 of 2010.15327, the unbiased estimator, is then no more than sum_ij K_ij L_ij / (B (B - 3)). A
    vector that is added to all images drops out of it; so the first image is taken off them all, as in
    float32 what they differ by would be lost beside what they have in common.
    """
    flat = features.detach().flatten(1).float()  # (B, N D)
    count = len(flat)
    flat = flat - flat[0]
    K = (flat @ flat.T).cpu().double().fill_diagonal_(0.0)  # (B, B)
    rows = K.sum(dim=1) / (count - 2)
    K += rows.sum() / (count - 1) - rows[:, None] - rows
    return K.fill_diagonal_(0.0)


@dataclass(frozen=True, eq=False)
class LayerSimilarity(Finding):
    """CKA of the outputs of each layer (row) and each layer (column), of one model or of two."""

    name: ClassVar[str] = "layer-similarity"

    similarity: Array
    """(L, L'), estimated without bias, so that a little below 0 or above 1 can occur; nan for a layer that
    gives the same for every image."""
    images: int
    skipped: int
    """Images in batches of fewer than ``LEAST``, which the estimator does not exist for."""
    names: tuple[str, str] = ("layer", "layer")
    """What rows and columns are."""

    def table(self) -> dict[str, Array]:
        """A row for each pair of layers, counted from 1."""
        row, column = np.indices(self.similarity.shape) + 1
        return {"layer": row.ravel(), "other_layer": column.ravel(), "cka": self.similarity.ravel()}

    def summary(self) -> dict[str, Any]:
        """How alike neighbours are, and the first layer and the last."""
        steps = np.diagonal(self.similarity, 1)
        return {
            "images": self.images,
            "images_skipped": self.skipped,
            "next_layer": [_plain(step) for step in steps],
            "first_and_last": _plain(self.similarity[0, -1]),
            "least": _plain(np.fmin.reduce(self.similarity, axis=None)),
        }

    @canvas.styled
    def plot(self) -> Figure:
        """A map of layer against layer, both from the left and the bottom up, and its numbers where they are few."""
        rows, columns = self.similarity.shape
        drawn, (axes,) = canvas.figure(size=(5.0, 4.2))
        shown = axes.imshow(self.similarity, origin="lower", vmin=0, vmax=1, cmap=canvas.HEAT)
        for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
            shown_layers = range(1, count + 1, 1 if count <= 16 else -(-count // 12))
            axis.set_ticks([layer - 1 for layer in shown_layers], [str(layer) for layer in shown_layers])
        if max(rows, columns) <= 16:
            for (row, column), value in np.ndenumerate(self.similarity):
                ink = canvas.INK if value > 0.6 else canvas.PAPER
                axes.text(
                    column, row, f"{value:.2f}".replace("0.", "."), ha="center", va="center", fontsize=5.5, color=ink
                )
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel=self.names[1], ylabel=self.names[0], title="Similarity of layers")
        drawn.colorbar(shown, ax=axes, label="linear CKA", pad=0.02).outline.set_visible(False)
        return drawn


class _Grams(Statistic):
    """Holds the U-centred Gram of each block's output, (B, B), of one batch."""

    def __init__(self, layers: int) -> None:
        self.blocks = range(layers)
        self.grams: list[Tensor] = []

    def receive(self, kind: Kind, layer: int, values: Tensor) -> None:
        self.grams.append(gram(values))


class _Sums:
    """Sums over batches of HSIC between two lists of Grams, and of each with itself."""

    def __init__(self, rows: int, columns: int) -> None:
        self.cross, self.rows, self.columns = np.zeros((rows, columns)), np.zeros(rows), np.zeros(columns)
        self.images = self.skipped = 0

    def add(self, first: list[Tensor], second: list[Tensor]) -> None:
        """U-centred Grams (B, B) of one batch; larger batches count for more."""
        x, y = (torch.stack(grams).flatten(1).numpy() for grams in (first, second))  # (L, B B)
        count = len(first[0])
        weight = 1 / (count - 3)  # HSIC's 1 / (B (B - 3)) times the B images
        self.cross += weight * (x @ y.T)
        self.rows += weight * np.square(x).sum(axis=1)
        self.columns += weight * np.square(y).sum(axis=1)
        self.images += count

    def finding(self, names: tuple[str, str]) -> LayerSimilarity:
        if not self.images:
            raise UserError(f"Layers are compared on batches of {LEAST} images or more: there was none.")
        scale = np.sqrt(self.rows[:, None] * self.columns)  # (L, L')
        similarity = np.divide(self.cross, scale, out=np.full_like(scale, np.nan), where=scale > 0)
        return LayerSimilarity(similarity, self.images, self.skipped, names)


class MinibatchCKA(_Grams):
    """Accumulates ``LayerSimilarity`` of block outputs, all tokens side by side; it holds (B, B) numbers a layer.

    HSIC is estimated in each batch without bias and averaged over batches (2010.15327), so that the size of
    a batch does not shift the result. A batch of fewer than ``LEAST`` images, as the last may be, is left
    out, and its images are counted.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config.encoder.layers)
        self.sums = _Sums(config.encoder.layers, config.encoder.layers)

    def receive(self, kind: Kind, layer: int, values: Tensor) -> None:
        """A block's output (B, N, D)."""
        if len(values) >= LEAST:
            super().receive(kind, layer, values)
        elif layer == 0:
            self.sums.skipped += len(values)

    def close(self) -> None:
        """The batch's Grams are compared and let go."""
        if self.grams:
            self.sums.add(self.grams, self.grams)
        self.grams = []

    def finding(self) -> LayerSimilarity:
        """What has come together.

        Raises:
            UserError: no batch was large enough.
        """
        return self.sums.finding(("layer", "layer"))


def compare_layers(
    forwards: tuple[Forward, Forward],
    layers: tuple[int, int],
    batches: Iterable[tuple[Tensor, Tensor]],
    names: tuple[str, str] = ("layer of the first model", "layer of the second model"),
) -> LayerSimilarity:
    """CKA between all layers of two models on the same images (2108.08810, figure 2).

    Args:
        forwards: the two models' forward passes.
        layers: how many they have.
        batches: the same B images as each of the two is fed them, (B, C, H, W) each.
        names: what the two are called in the figure.

    Raises:
        UserError: no batch was large enough.
    """
    sums = _Sums(*layers)
    for pair in batches:
        if len(pair[0]) < LEAST:
            sums.skipped += len(pair[0])
            continue
        held = [_Grams(count) for count in layers]
        for forward, images, statistic in zip(forwards, pair, held, strict=True):
            observe(forward, [images], [statistic])
        sums.add(held[0].grams, held[1].grams)
    return sums.finding(names)


def _plain(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
