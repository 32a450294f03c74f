"""Look inside a model: every analysis of it, each worked out when it is first asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.analyze.attention import Rollout, attention_weights, relevance, to_patches, usual_query
from vitrail.analyze.comparison import Compared
from vitrail.analyze.components import PatchComponents
from vitrail.analyze.distance import AttentionDistance
from vitrail.analyze.entropy import AttentionEntropy
from vitrail.analyze.equivariance import Equivariance, equivariance
from vitrail.analyze.equivariance import compare as compare_equivariance
from vitrail.analyze.filters import PatchFilters, patch_filters
from vitrail.analyze.finding import Finding
from vitrail.analyze.gallery import AttentionMaps
from vitrail.analyze.maps import feature_maps
from vitrail.analyze.norms import TokenNorms
from vitrail.analyze.positions import PositionSimilarity, position_similarity
from vitrail.analyze.receptive import ReceptiveField, receptive_field
from vitrail.analyze.receptive import compare as compare_fields
from vitrail.analyze.scaling import Scaling, scaling
from vitrail.analyze.similarity import LayerSimilarity
from vitrail.analyze.stream import observe
from vitrail.config import (
    Preprocessing,
    Size,
    parse_size,
    size_text,
    suggestion,
)
from vitrail.errors import UserError
from vitrail.model.cnn import CNN
from vitrail.model.vision import VisionTransformer
from vitrail.report.terminal import Show
from vitrail.runtime.device import pick_device
from vitrail.runtime.predictor import Predictor
from vitrail.tasks.classifier import Classifier, load
from vitrail.tasks.inspection_pass import Streamed, at_a_time
from vitrail.tasks.pictures import Pictures, Shown, fed
from vitrail.tasks.untrained import CNNS, untrained

FEW = 6
"""Pictures that equivariance and receptive fields are measured on: they take many passes each."""
SECONDS = 20.0
"""What measuring the cost may take."""


@dataclass(frozen=True)
class Part:
    """One analysis, and what it cannot do without."""

    name: str
    transformer: bool = True
    """Whether it is about attention, positions or patches."""
    pictures: bool = True

    @property
    def attribute(self) -> str:
        """Of ``Inspection``."""
        return self.name.replace("-", "_")


PARTS = {
    part.name: part
    for part in (
        Part("attention-maps"),
        Part("attention-distance"),
        Part("attention-entropy"),
        Part("position-similarity", pictures=False),
        Part("patch-filters", pictures=False),
        Part("patch-components"),
        Part("token-norms"),
        Part("layer-similarity"),
        Part("equivariance", transformer=False),
        Part("receptive-field", transformer=False),
        Part("cost", pictures=False),
    )
}
"""All there is, in the order of a page."""


class Inspection:
    """What a model learned. Every property is a ``Finding``: arrays, ``.table()``, ``.summary()``, ``.plot()``.

    What needs no more than a forward pass is worked out for all properties together, in one.

    Attributes:
        name: what the model is called.
        model: the module that is looked into: put on the device, and in evaluation mode.
        pictures: what it is looked into with, possibly none.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        pictures: Pictures,
        layer: int | None = None,
        shown: int = 6,
        device: str | None = None,
        show: Show | None = None,
    ) -> None:
        self.name, self.pictures, self.count = name, pictures, shown
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.show = show or Show(quiet=True)
        self.layer = layer
        if shown < 1:
            raise UserError(f"At least 1 picture must be shown, not {shown}.")
        if layer is not None:
            layers = self.transformer.config.encoder.layers
            if not 1 <= layer <= layers:
                raise UserError(f"There is no layer {layer}: the model has layers 1 to {layers}.")

    @property
    def transformer(self) -> VisionTransformer:
        """The model, if it is one with attention.

        Raises:
            UserError: it is not.
        """
        if not isinstance(self.model, VisionTransformer):
            able = ", ".join(part.name for part in PARTS.values() if not part.transformer)
            raise UserError(f"{self.name} has no attention, and no positions or patches: it can be asked for {able}.")
        return self.model

    @property
    def read(self) -> int:
        """How many pictures there are, but for those that were found unreadable so far."""
        return len(self.pictures) - len(self.pictures.unreadable)

    def check(self, part: str) -> None:
        """Raise UserError if there is no such part, or the model or the pictures cannot give it."""
        if part not in PARTS:
            raise UserError(f"There is no part {part!r}{suggestion(part, PARTS)}.")
        if PARTS[part].transformer:
            _ = self.transformer
        if PARTS[part].pictures and not len(self.pictures):
            raise UserError(f"{part} needs pictures: name some files, or a folder of them.")

    def find(self, part: str) -> Finding:
        """The finding of a part by name, such as ``attention-distance``.

        Raises:
            UserError: there is no such part, or it cannot be had of this model and these pictures.
        """
        self.check(part)
        found: Finding = getattr(self, PARTS[part].attribute)
        return found

    @property
    def attention_distance(self) -> AttentionDistance:
        """How far each head looks, in pixels (article 6.3)."""
        return self._streamed("attention-distance").distance.finding()

    @property
    def attention_entropy(self) -> AttentionEntropy:
        """How evenly each head looks, and what it gives to special tokens."""
        return self._streamed("attention-entropy").entropy.finding()

    @property
    def layer_similarity(self) -> LayerSimilarity:
        """How alike the layers' outputs are (CKA)."""
        return self._streamed("layer-similarity").similarity.finding()

    @property
    def token_norms(self) -> TokenNorms:
        """How long the patches' vectors are, and which are outliers."""
        return self._streamed("token-norms").norms.finding()

    @property
    def patch_components(self) -> PatchComponents:
        """The principal components of the last layer's patch features."""
        return self._streamed("patch-components").components.finding()

    def _streamed(self, part: str) -> Streamed:
        self.check(part)
        return self.streamed

    @cached_property
    def attention_maps(self) -> AttentionMaps:
        """Where a few pictures are looked at: one layer, rolled out, and for the predicted class (article 6.3)."""
        self.check("attention-maps")
        model, config = self.transformer, self.transformer.config
        query, layer = usual_query(config), (self.layer or config.encoder.layers) - 1
        maps: dict[str, list[Tensor]] = {f"layer {layer + 1}": [], "rollout": []}
        notes: list[str] = []
        asked_by = "the class token" if query == "class" else "the average patch"
        for one in self._watched(self.shown, "Mapping attention"):
            image = one.image[None].to(self.device)
            rolled = Rollout(config.encoder.layers)
            with torch.inference_mode():
                last = attention_weights(model, image, [layer])[0].mean(dim=1)  # (1, N, N)
            observe(lambda batch, trace: model.encode(batch, 1, trace), [image], [rolled])
            found = {
                f"layer {layer + 1}": to_patches(last, config, query),
                "rollout": to_patches(rolled.product, config, query),
            }
            if model.classifier is not None and bool(model.classifier.weight.any()):
                found["for the class"] = relevance(model, image).to_patches(config)
            for name, (shares,) in found.items():
                maps.setdefault(name, []).append(shares / shares.sum().clamp(min=1e-12))
        if "for the class" not in maps:
            notes.append("The model has no trained classifier, so there is no map for a class.")
            notes.append(f"Asked by {asked_by}.")
        else:
            notes.append(f"Asked by {asked_by}; for the class, by the tokens that the head reads.")
        return AttentionMaps(
            pictures=np.stack([np.asarray(one.picture) for one in self.shown]),
            names=tuple(one.name for one in self.shown),
            maps={name: torch.stack(values).cpu().numpy() for name, values in maps.items()},
            notes=tuple(notes),
        )

    @cached_property
    def position_similarity(self) -> PositionSimilarity:
        """What the positions say of who is near whom (article 6.4)."""
        images = self.pictures.first(FEW).to(self.device) if len(self.pictures) else None
        return position_similarity(self.transformer, images, (self.layer or 1) - 1)

    @cached_property
    def patch_filters(self) -> PatchFilters:
        """The principal components of the patch embedding's filters (ViT figure 7 left)."""
        return patch_filters(self.transformer)

    @cached_property
    def equivariance(self) -> Compared[Equivariance]:
        """What a shift of the picture does to the features (article 6.2.1): of the model, and of untrained ones."""
        self.check("equivariance")
        shifts = _shifts(self._cell)
        images = self.pictures.first(FEW, larger=max(shifts)).to(self.device)
        found = {
            name: equivariance(feature_maps(model), images, shifts, self.pictures.how.size, model=name)
            for name, model in self._beside("Shifting the pictures")
        }
        return Compared(found, compare_equivariance)

    @cached_property
    def receptive_field(self) -> Compared[ReceptiveField]:
        """Which pixels each layer's features depend on (article 6.2.1): of the model, and of untrained ones."""
        self.check("receptive-field")
        images = self.pictures.first(FEW).to(self.device)
        found = {
            name: receptive_field(feature_maps(model), images, self.pictures.how.size, model=name)
            for name, model in self._beside("Following features back to pixels")
        }
        return Compared(found, compare_fields)

    @cached_property
    def cost(self) -> Scaling:
        """What more patches cost, by resolution and patch size, counted and measured here (article 2.2)."""
        config = self.transformer.config
        (ph, pw), (P, Q) = config.cell, config.patch
        resolutions = [(side * ph, side * pw) for side in (8, 10, 14, 20, 28, 40)]  # whole patches twice as large too
        with self.show.progress("Timing more and more patches") as advance:
            advance(0, None)  # it ends when its time is over
            return scaling(config, resolutions, [(P, Q), (2 * P, 2 * Q)], budget_seconds=SECONDS)

    @cached_property
    def shown(self) -> list[Shown]:
        """The pictures whose attention is shown."""
        return self.pictures.shown(self.count)

    @property
    def _cell(self) -> int:
        """Pixels of the finest shift that a whole number of cells makes."""
        if isinstance(self.model, VisionTransformer):
            return max(self.model.config.cell)
        with torch.inference_mode():
            images = self.pictures.first(1).to(self.device)
            last = feature_maps(self.model)(images)[-1][1]  # (1, D, h, w)
        return max(1, images.shape[3] // last.shape[3])

    def _watched(self, pictures: Sequence[Shown], doing: str) -> Iterator[Shown]:
        """The pictures, with a progress bar."""
        with self.show.progress(doing) as advance:
            for number, one in enumerate(pictures):
                advance(number, len(pictures))
                yield one
            advance(len(pictures), len(pictures))

    def _beside(self, doing: str) -> Iterator[tuple[str, nn.Module]]:
        """The model, and those that have learned nothing."""
        others = untrained(self.model, len(self.pictures.how.mean))
        with self.show.progress(doing, unit="model") as advance:
            advance(0, 1 + len(others))
            yield self.name, self.model
            for number, (name, make) in enumerate(others.items(), 1):
                advance(number, 1 + len(others))
                yield name, make().to(self.device).eval()
            advance(1 + len(others), 1 + len(others))

    @cached_property
    def streamed(self) -> Streamed:
        """All that one forward pass a picture gives."""
        model = self.transformer
        predictor = Predictor.of(model, str(self.device))
        streamed = Streamed.of(model)
        total, done = len(self.pictures), 0

        def told(images: Iterator[Tensor]) -> Iterator[Tensor]:
            nonlocal done
            for batch in images:
                yield batch
                done += len(batch)
                advance(done, total)

        with self.show.progress("Looking at pictures") as advance:
            observe(predictor.encode, told(self.pictures.batches(at_a_time(model.config))), streamed.statistics)
        return streamed


def _shifts(cell: int) -> list[int]:
    """Pixels to shift by, up to two cells, by about a quarter of one; halves and wholes are among them."""
    return sorted({*range(0, 2 * cell + 1, max(1, round(cell / 4))), cell // 2, cell, 2 * cell})


def inspect(
    model: str | Path | Classifier | nn.Module,
    images: str | Path | Sequence[str | Path] | Tensor = (),
    *,
    resolution: int | str | Size | None = None,
    layer: int | None = None,
    limit: int | None = 1000,
    shown: int = 6,
    heads: int | None = None,
    architecture: str | None = None,
    preprocessing: Preprocessing | None = None,
    device: str | None = None,
    quiet: bool = True,
) -> Inspection:
    """Look inside a model.

    Args:
        model: a ``Classifier``, anything ``load`` takes, or a module: a ``VisionTransformer``, or one that gives a
            feature map (B, D, h, w), such as a CNN up to its pooling.
        images: files, folders, a CSV or a built-in set; or preprocessed images (B, C, H, W). None are needed for
            positions, filters and cost.
        resolution: pixels, ``224`` or ``"224x168"``; None: what the model is fed.
        layer: counted from 1; whose attention maps are shown (None: the last) and, where positions act inside
            attention, whose positions (None: the first).
        limit: statistics are over so many pictures, evenly chosen; None: over all.
        shown: pictures whose attention is shown.
        heads, architecture: see ``load``.
        preprocessing: how files are made what a bare module takes; None: 224 pixels, ImageNet's mean and deviation.
        quiet: show no progress.

    Returns:
        An ``Inspection``: nothing is computed before it is asked for, as in ``inspect(m, i).attention_distance``.

    Raises:
        UserError: the model cannot be loaded, there are no such images, or there is no such layer.
    """
    show = Show(quiet)
    size = None if resolution is None else parse_size(resolution)
    if isinstance(model, str) and model in CNNS and not os.path.exists(model):
        name, model = f"{model}, random weights", CNNS[model]()
    elif isinstance(model, nn.Module):
        name = type(model).__name__
    if isinstance(model, (Classifier, nn.Module)) and not (heads is None and architecture is None):
        raise UserError("heads and architecture are for loading: the model is there already, so leave them out.")
    if isinstance(model, nn.Module):
        module: nn.Module = model
        how = fed(module, images, preprocessing, size)
    else:
        classifier = (
            model
            if isinstance(model, Classifier)
            else load(model, size, heads, architecture=architecture, device=device, quiet=quiet)
        )
        name, module, how = str(classifier.report.source), classifier.model, classifier.card.preprocessing
        name = f"{architecture or 'a ViT'}, random weights" if name == "none" else name
    if isinstance(module, (VisionTransformer, CNN)) and size not in (None, module.config.image_size):
        raise UserError(
            f"The model is there already, for {size_text(module.config.image_size)} pixels: for another resolution "
            "load it with image_size=, or name where it comes from."
        )
    named = [images] if isinstance(images, (str, Path)) else images
    pictures = Pictures(named, how, limit)
    if pictures.paths and len(how.mean) != 3:
        raise UserError(
            f"Files are read in 3 channels, and the model takes {len(how.mean)}: hand in a tensor of images."
        )
    return Inspection(name, module, pictures, layer, shown, device, show)
