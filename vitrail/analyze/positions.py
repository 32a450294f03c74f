"""Position similarity: which patches a model takes to be near (ViT figure 7 centre, appendix D.4; article 6.4)."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.analyze.structure import Structure, profiles, structure
from vitrail.config import PositionKind, Size, size_text
from vitrail.errors import UserError
from vitrail.model.encoder import Block, Trace
from vitrail.model.position import Absolute, EveryLayer, Relation
from vitrail.model.vision import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["cosine similarity", "implied bias"]
BATCH = 32
"""Images that go through the model at a time."""
MOST = 16
"""Panels along a side of the figure beyond which they are thinned out."""


@dataclass(frozen=True, eq=False)
class PositionSimilarity(Finding):
    """A number from each patch to each, that the position scheme alone decides."""

    name: ClassVar[str] = "position-similarity"

    kind: Kind
    """``cosine similarity`` of the vectors of the two patches, or ``implied bias`` on the logits of attention."""
    scheme: PositionKind
    layer: int
    """As asked for, from 0; table, summary and figure count from 1."""
    grid: Size
    similarity: Array
    """(h w, h w): from the query's patch (row) to the key's (column), patches in raster order."""
    heads: Array | None
    """An implied bias in each head, (K, h w, h w), of which ``similarity`` is the mean; None for a cosine."""

    def structure(self) -> Structure:
        """How much of it is rows, columns and distance."""
        return structure(self.similarity, self.grid)

    def table(self) -> dict[str, Array]:
        """A row for each query and key: their rows and columns in the grid, counted from 1, and the similarity."""
        shape = (*self.grid, *self.grid)
        names = ("query_row", "query_column", "key_row", "key_column")
        places = dict(zip(names, (1 + axis.ravel() for axis in np.indices(shape)), strict=True))
        return {**places, "similarity": self.similarity.ravel()}

    def summary(self) -> dict[str, Any]:
        """What was measured, and the fields of ``structure``."""
        measured = {"kind": self.kind, "scheme": self.scheme, "layer": self.layer + 1, "grid": list(self.grid)}
        return {**measured, **asdict(self.structure())}

    @canvas.styled
    def plot(self) -> Figure:
        """A map for each query's patch, laid out as the patches are (ViT figure 7): h x w maps of h x w cells.

        Rows and columns count from 1. In a cosine the query's own cell is the brightest, in a bias a dot is on
        it; beyond ``MOST`` a side evenly chosen ones are shown, as the title says.

        Raises:
            UserError: matplotlib is not installed.
        """
        (h, w), signed = self.grid, self.kind == "implied bias"
        (rows, row_step), (columns, column_step) = _shown(h), _shown(w)
        panels = self.similarity.reshape(h, w, h, w)[np.ix_(rows, columns)]  # (r, c, h, w)
        gap = max(1, round(min(h, w) / 8))
        tiled = np.full((len(rows), h + gap, len(columns), w + gap), np.nan)
        tiled[:, :h, :, :w] = panels.transpose(0, 2, 1, 3)
        image = tiled.reshape(len(rows) * (h + gap), len(columns) * (w + gap))[:-gap, :-gap]
        low, high = self._limits()
        width = 6.4
        height = min(max((width - 1.5) * image.shape[0] / image.shape[1], 1.6), 8.0) + 0.8
        drawn, (axes,) = canvas.figure(size=(width, height))
        shown = axes.imshow(
            image,
            cmap=canvas.SIGNED if signed else canvas.HEAT,
            vmin=low,
            vmax=high,
            aspect="equal" if min(h, w) > 1 else "auto",
        )
        canvas.picture_only(axes)
        left, top = (w + gap) * np.arange(len(columns)), (h + gap) * np.arange(len(rows))  # of the panels
        axes.set_xticks(left + (w - 1) / 2, [str(column + 1) for column in columns])
        axes.set_yticks(top + (h - 1) / 2, [str(row + 1) for row in rows])
        if signed:
            own = np.meshgrid(left + columns, top + rows)
            axes.plot(own[0].ravel(), own[1].ravel(), ".", color=canvas.INK, markersize=2, markeredgewidth=0)
        axes.tick_params(length=0, labelsize=7)
        axes.set_xlabel("column of the query's patch")
        axes.set_ylabel("row of the query's patch")
        thinned = [f"every {_ordinal(row_step)} row"] if row_step > 1 else []
        thinned += [f"every {_ordinal(column_step)} column"] if column_step > 1 else []
        title = self._title() + (f"\n{' and '.join(thinned)} shown" if thinned else "")
        axes.set_title(title)
        bar = drawn.colorbar(shown, cax=axes.inset_axes((1.02, 0.0, 0.025, 1.0)))
        bar.set_label(self._unit())
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
        return drawn

    @canvas.styled
    def plot_profile(self) -> Figure:
        """Similarity against distance for patches of the same row, of the same column and others: means and spread.

        Raises:
            UserError: matplotlib is not installed.
        """
        drawn, (axes,) = canvas.figure()
        colours = {"same row": canvas.BLUE, "same column": canvas.AMBER, "elsewhere": canvas.SOFT}
        for name, profile in profiles(self.similarity, self.grid).items():
            low, high = profile.mean - profile.deviation, profile.mean + profile.deviation
            axes.fill_between(profile.distance, low, high, color=colours[name], alpha=0.16, linewidth=0)
            axes.plot(profile.distance, profile.mean, color=colours[name], marker="o", markersize=3, label=name)
        if axes.lines:
            axes.legend(title="mean and deviation", fontsize=8, title_fontsize=8)
            axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("distance in patches")
        axes.set_ylabel(self._unit())
        axes.set_title(self._title())
        return drawn

    def _limits(self) -> tuple[float, float]:
        """The colour scale: around zero for a bias; for a cosine from the least there is to 1."""
        if self.kind == "implied bias":
            most = float(np.abs(self.similarity).max()) or 1.0
            return -most, most
        least = float(self.similarity.min())
        return (least if least < 1.0 - 1e-6 else 0.0), 1.0

    def _title(self) -> str:
        of = f"{self.scheme}, {size_text(self.grid)} patches"
        return f"Position similarity: {of}" if self.heads is None else f"Position bias: {of}, layer {self.layer + 1}"

    def _unit(self) -> str:
        return "cosine similarity" if self.heads is None else f"bias on the logits, mean of {len(self.heads)} heads"


def position_similarity(model: VisionTransformer, images: Tensor | None = None, layer: int = 0) -> PositionSimilarity:
    """How alike a model takes two patches to be for where they stand, whatever its position scheme.

    Kinds that are a vector a patch: cosine of the two vectors, that of ViT's figures 7 and 10; the zero
    vector is like none. Where every layer has a table, ``layer`` says whose; else there is but one.

    Kinds that act inside attention (relative, rotary): the bias they imply. With the mean query and the
    mean key of a layer's patches, before any rotation, the same for every patch, it is the logits with
    the relation minus those without, in each head (in units of the logits, 1 / sqrt(D/K) included). For
    a relative kind that is the bias itself. There is no counterpart of it in the paper.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), preprocessed, to take the means over; None: one picture of zeros, which is
            mid-grey for a preprocessing of mean and std 0.5. Kinds that are vectors need none.
        layer: counted from 0.

    Raises:
        UserError: there is no such layer; the model has no positions; ``images`` are none at all or of
            another size; the numbers are not finite.
    """
    config = model.config
    Trace(lambda *_: None, blocks=(layer,)).check(config.encoder.layers)
    position, relation = model.position, model.position.relation(layer)
    table = position.layers[layer] if isinstance(position, EveryLayer) else position
    heads: Tensor | None = None
    with torch.no_grad():
        if isinstance(table, Absolute):
            unit = F.normalize(table.rows()[1].cpu().double(), dim=1)  # (h w, D)
            similarity = (unit @ unit.T).clamp(-1.0, 1.0)
        elif relation is not None:
            queries, keys = _mean_query_and_key(model, images, layer)
            # Elsewhere than on a CPU there may be no float64, which the difference of logits is worth.
            heads = _implied_bias(copy.deepcopy(relation).cpu(), queries, keys, len(config.tokens), config.grid)
            similarity = heads.mean(0)
        else:
            raise UserError(
                f"The model has no position information (kind {config.position.kind}), so there is no similarity to "
                "show: take a model of another kind."
            )
    if not similarity.isfinite().all():
        raise UserError(
            "The position similarity is not finite: the weights or the images hold NaN or infinity, so load them anew."
        )
    return PositionSimilarity(
        kind="cosine similarity" if heads is None else "implied bias",
        scheme=config.position.kind,
        layer=layer,
        grid=config.grid,
        similarity=similarity.float().numpy(),
        heads=None if heads is None else heads.numpy(),
    )


def _mean_query_and_key(model: VisionTransformer, images: Tensor | None, layer: int) -> tuple[Tensor, Tensor]:
    """Means over patches and images of a layer's queries and keys before rotation: (K, D/K) each."""
    config, D = model.config, model.config.encoder.width
    if images is None:
        images = torch.zeros(1, config.channels, *config.image_size)
    if not len(images):
        raise UserError("There are no images to average queries and keys over: give at least one, or None for grey.")
    sums: list[Tensor] = []

    def look(_: object, __: object, qkv: Tensor) -> None:  # (B, N, 3 D)
        sums.append(qkv[:, len(config.tokens) :, : 2 * D].float().cpu().double().sum((0, 1)))

    block = model.encoder.blocks[layer]
    assert isinstance(block, Block)
    handle = block.attention.qkv.register_forward_hook(look)
    try:
        for batch in torch.split(images, BATCH):
            model.encode(batch.to(model.tokens))
    finally:
        handle.remove()
    mean = torch.stack(sums).sum(0) / (len(images) * config.grid[0] * config.grid[1])  # (2 D,)
    queries, keys = mean.view(2, config.encoder.heads, D // config.encoder.heads)
    return queries, keys


def _implied_bias(relation: Relation, query: Tensor, key: Tensor, special: int, grid: Size) -> Tensor:
    """Logits with the relation minus those without, the same (K, D/K) at every token: (K, h w, h w)."""
    (h, w), scale = grid, query.shape[-1] ** -0.5
    tokens = special + h * w
    q = query[None, :, None].expand(-1, -1, tokens, -1)  # (1, K, N, D/K)
    k = key[None, :, None].expand(-1, -1, tokens, -1)
    turned_q, turned_k = relation.rotate(q, k)
    rows = []
    for row in range(h):  # a block of queries at a time, as in attention
        queries = slice(special + row * w, special + (row + 1) * w)
        part = turned_q[:, :, queries]  # (1, K, w, D/K)
        bias = (part @ turned_k[:, :, special:].mT - q[:, :, queries] @ k[:, :, special:].mT) * scale
        added = relation.bias(part, queries) if relation.biased else None  # (1, K, w, N)
        rows.append((bias if added is None else bias + added[..., special:]).float())
    return torch.cat(rows, dim=2)[0]


def _shown(length: int) -> tuple[list[int], int]:
    """Which of ``length`` rows or columns get a panel, evenly spaced, and how far apart they are."""
    step = 1 if length <= MOST else -(-length // 12)
    return list(range((length - 1) % step // 2, length, step)), step


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
