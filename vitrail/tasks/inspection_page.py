"""What an inspection found, in the words and figures of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.analyze.attention import Rollout
from vitrail.analyze.canvas import inline_svg
from vitrail.analyze.finding import Finding
from vitrail.analyze.gallery import AttentionMaps
from vitrail.analyze.stream import Kind, Statistic, observe
from vitrail.config import ABSOLUTE, size_text
from vitrail.cost import parameters
from vitrail.errors import UserError
from vitrail.model.vision import VisionTransformer
from vitrail.report.explorer import Attention, Explorer, ExplorerPhoto, TokenGrid
from vitrail.report.inspection import Drawing, Facts, Picture, Section
from vitrail.report.inspection import Inspection as Page
from vitrail.tasks.inspection import PARTS, Inspection
from vitrail.tasks.inspection_facts import of_finding
from vitrail.tasks.report import jpeg_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "attention-maps": "Where it looks",
    "attention-distance": "How far it looks",
    "attention-entropy": "How evenly it looks",
    "position-similarity": "What positions know",
    "patch-filters": "What a patch is first seen with",
    "patch-components": "What patches are told apart by",
    "token-norms": "Tokens that stand out",
    "layer-similarity": "What layers change",
    "equivariance": "What a shift does",
    "receptive-field": "Which pixels count",
    "cost": "What patches cost",
}
TEXTS: dict[str, tuple[str, ...]] = {
    "attention-maps": (
        "Each picture as the model saw it, and the share of attention that every patch gets: in one layer, averaged "
        "over its heads; rolled out through all layers, half of every step standing for the residual connection "
        "(Abnar and Zuidema, 2005.00928; ViT figure 6); and, where there is a trained classifier, weighted with the "
        "gradient of the likeliest class (Chefer et al., 2103.15679). The brightest patch of every map is its "
        "largest share.",
    ),
    "attention-distance": (
        "For each head the distance in pixels between a patch and what it attends to, weighted by the attention and "
        "averaged over patches and pictures (ViT figure 7 right, appendix D.7; article 6.3). Special tokens stand "
        "nowhere and are left out. Bars are 95 % intervals over pictures; the dashed line is attention that is the "
        "same everywhere.",
    ),
    "attention-entropy": (
        "The entropy of each head's attention, averaged over patches and pictures: high where a head looks at "
        "everything alike, low where it picks. Beside it the share that goes to special tokens, which models use as "
        "a place to look at when there is nothing to see (2309.16588, 2309.17453).",
    ),
    "position-similarity": (
        "One panel for each patch: how alike its position is to all others (ViT figure 7 centre; article 6.4). "
        "Where positions are vectors, this is their cosine similarity; where they act inside attention (relative, "
        "rotary), the bias that they imply for an average query and key. The shares of variance (R squared) are "
        "over all pairs of different patches.",
    ),
    "patch-filters": (
        "The principal components of the filters that a patch is embedded with (ViT figure 7 left), the strongest "
        "first.",
    ),
    "patch-components": (
        "The first three principal components of the last layer's patch features over all pictures, shown as red, "
        "green and blue (DINOv2, 2304.07193, figure 1): what gets the same colour is alike to the model.",
    ),
    "token-norms": (
        "The length of the patches' vectors after each layer. Some large models turn a few patches of little "
        "content into scratch space, with vectors many times as long as the others (Darcet et al., 2309.16588). "
        "Here a patch counts as an outlier from four times the median of its picture and layer.",
    ),
    "layer-similarity": (
        "Linear centred kernel alignment between the outputs of all layers (Kornblith et al., 1905.00414; for ViT "
        "Raghu et al., 2108.08810), estimated without bias from batches: 1 means the same up to rotation and scale.",
    ),
    "equivariance": (
        "Pictures are moved by a few pixels, real ones coming in at the side, and the features of the interior held "
        "against where they should have moved to (article 6.2.1): 0 is perfect equivariance, 1 no more alike than "
        "unrelated patches. A ViT can only be equivariant to whole patches. Beside the model two that have learned "
        "nothing: its like, and a convolutional network.",
    ),
    "receptive-field": (
        "Which pixels the features in the middle depend on, by the energy of their gradient (Luo et al., "
        "1701.04128): the maps are of the first to the last layer, the curves the radius that holds half and nine "
        "tenths of the energy.",
    ),
    "cost": (
        "Operations, and the measured time of a forward pass of one picture on this machine, by the number of "
        "patches N. Attention costs O(N squared), all else O(N) (article 2.2).",
    ),
}


def page(
    inspection: Inspection, found: Mapping[str, Finding], drawn: Mapping[str, Figure], absent: Mapping[str, str]
) -> Page:
    """The page of what was found, drawn, and could not be had."""
    sections = []
    for part in PARTS:
        if part in found:
            sections.append(_section(inspection, part, found[part], drawn[part]))
        elif part in absent:
            sections.append(Section(part, TITLES[part], absent=absent[part]))
    explorer, why_not = None, ""
    try:
        explorer = _explorer(inspection)
    except UserError as error:
        why_not = str(error)
    return Page(inspection.name, _facts(inspection), inspection.read, sections, explorer, why_not)


def _section(inspection: Inspection, part: str, finding: Finding, drawn: Figure) -> Section:
    facts = of_finding(part, finding.summary())
    strips = []
    if part == "patch-components":
        strips = [
            [
                Picture(label, jpeg_uri(image))
                for name, picture, colours in _coloured(inspection)
                for label, image in ((name, picture), ("its components", colours))
            ]
        ]
    caption = f"figures/{part}.png and .svg; the numbers are in numbers/{part}.parquet and .json."
    alt = f"{TITLES[part]}: " + "; ".join(f"{term} {value}" for term, value in facts)
    figure = Drawing(part, inline_svg(drawn, part), caption, alt)
    notes = finding.notes if isinstance(finding, AttentionMaps) else ()
    return Section(part, TITLES[part], (*TEXTS[part], *notes), [figure], facts, strips)


def _explorer(inspection: Inspection) -> Explorer:
    """The shown pictures with all their attention.

    Raises:
        UserError: there is no attention, or no picture.
    """
    inspection.check("attention-maps")
    model, config = inspection.transformer, inspection.transformer.config
    tokens, photos = TokenGrid(config.grid, config.cell, config.tokens), []
    for one in inspection.shown:
        packed, rolled = _Packing(tokens, config.encoder.layers), Rollout(config.encoder.layers)
        observe(
            lambda batch, trace: model.encode(batch, 1, trace),
            [one.image[None].to(inspection.device)],
            [packed, rolled],
        )
        rollout = tokens.pack(rolled.product.cpu().numpy())
        photos.append(ExplorerPhoto(one.name, jpeg_uri(one.picture), packed.layers, rollout))
    known = config.position.kind in ABSOLUTE
    return Explorer(tokens, photos, inspection.position_similarity.similarity if known else None)


class _Packing(Statistic):
    """Each layer's attention for one picture, as small as the page holds it."""

    def __init__(self, tokens: TokenGrid, layers: int) -> None:
        self.attention = range(layers)
        self.tokens = tokens
        self.layers: list[Attention] = []

    def receive(self, kind: Kind, layer: int, values: Tensor) -> None:
        """Attention weights (1, K, N, N)."""
        self.layers.append(self.tokens.pack(values[0].float().cpu().numpy()))


def _coloured(inspection: Inspection) -> list[tuple[str, Image.Image, Image.Image]]:
    """Name and picture of those shown, and their patches coloured by the first three components."""
    covariance, features = inspection.streamed.components, list[Tensor]()
    with torch.inference_mode():
        for one in inspection.shown:
            last = inspection.transformer.encode(one.image[None].to(inspection.device))[0]  # (1, N, D)
            features.append(covariance.features(last).cpu())
    colours = inspection.patch_components.colours(torch.cat(features).numpy())  # (n, h, w, 3)
    return [
        (one.name, one.picture, Image.fromarray(colour).resize(one.picture.size, Image.Resampling.NEAREST))
        for one, colour in zip(inspection.shown, (255 * colours).astype(np.uint8), strict=True)
    ]


def _facts(inspection: Inspection) -> Facts:
    model = inspection.model
    if isinstance(model, VisionTransformer):
        config = model.config
        encoder, position = config.encoder, config.position
        return [
            ("Model", f"Vision Transformer, {encoder.layers} layers of width {encoder.width}, {encoder.heads} heads"),
            ("Parameters", f"{parameters(config) / 1e6:.1f} M"),
            ("Input", f"{size_text(config.image_size)} pixels, patches of {size_text(config.cell)}"),
            ("Tokens", f"a grid of {size_text(config.grid)}; special: {', '.join(config.tokens) or 'none'}"),
            ("Positions", f"{position.kind}, {position.place}"),
        ]
    count = sum(parameter.numel() for parameter in model.parameters())
    return [("Model", type(model).__name__), ("Parameters", f"{count / 1e6:.1f} M")]
