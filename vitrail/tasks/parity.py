"""Two models side by side: how far apart they are, layer by layer, on the same images."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.config import Architecture, Size, parse_size
from vitrail.data.preprocess import load as load_picture
from vitrail.data.read import UnreadableImage
from vitrail.data.sources import iter_images
from vitrail.errors import UserError
from vitrail.model.cnn import CNN
from vitrail.model.encoder import Trace
from vitrail.model.vision import VisionTransformer
from vitrail.tasks import reference
from vitrail.tasks.classifier import Classifier, load

MOST_IMAGES = 16
"""Pictures of a folder that are compared; one already shows every disagreement of two programs."""

Outputs = Mapping[str, Tensor]
"""By name, in the order they are computed: ``block 0`` and so on (B, N, D), of a CNN (B, F, h, w), ``features``,
``logits``."""


@dataclass(frozen=True)
class Difference:
    """How far two models' outputs are apart at one place."""

    where: str
    relative: float
    """||a - b|| / ||b||"""
    largest: float
    """max |a - b|"""


@dataclass(frozen=True)
class Parity:
    """Two models on the same images."""

    a: str
    b: str
    images: int
    precision: str
    differences: tuple[Difference, ...]

    @property
    def parts_at(self) -> str | None:
        """The first place where they are further apart than rounding explains; None: nowhere."""
        bound = 1e-10 if self.precision == "float64" else 1e-5
        return next((entry.where for entry in self.differences if not entry.relative <= bound), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        differences = [asdict(entry) for entry in self.differences]
        return {**asdict(self), "differences": differences, "parts_at": self.parts_at}


def parity(
    a: str,
    b: str,
    images: str | Path | Sequence[str | Path] | None = None,
    *,
    resolution: int | str | Size | None = None,
    heads: int | None = None,
    architecture: str | None = None,
    double: bool = False,
) -> Parity:
    """Compare two models block by block, or a model with what a library installed here makes of it.

    Args:
        a: whatever ``vitrail.load`` takes.
        b: the same; or ``timm``, ``transformers`` or ``torchvision``: a as that library runs it.
        images: pictures, preprocessed as ``a`` says; None: two images of noise, the same each time.
        resolution: of both; None: what ``a`` is fed. Each model resamples its positions in its own way.
        heads, architecture: what a source does not say; see ``load``.
        double: compute in float64, where rounding no longer hides a small difference.

    Raises:
        UserError: a source cannot be loaded, the two are not of one shape, or the library is not installed.
    """
    size = None if resolution is None else parse_size(resolution)
    first = load(a, size, heads, architecture=architecture, device="cpu", runtime="eager", quiet=True)
    dtype = torch.float64 if double else torch.float32
    batch = (_noise(first.card.architecture) if images is None else _pictures(first, images)).to(dtype)
    ours = outputs(first, batch)
    if b in reference.LIBRARIES:
        with tempfile.TemporaryDirectory() as scratch:
            theirs = reference.outputs(b, a, first, Path(scratch), batch)
    else:
        second = load(
            b,
            first.card.architecture.image_size,
            heads,
            architecture=architecture,
            device="cpu",
            runtime="eager",
            quiet=True,
        )
        theirs = outputs(second, batch)
    common = [name for name in ours if name in theirs]
    if not common or any(ours[name].shape != theirs[name].shape for name in common):
        wrong = next((name for name in common if ours[name].shape != theirs[name].shape), "any block")
        raise UserError(f"{a} and {b} differ in the shape of {wrong}: they are not the same architecture.")
    differences = tuple(difference(name, ours[name], theirs[name]) for name in common)
    return Parity(a, b, len(batch), "float64" if double else "float32", differences)


def outputs(classifier: Classifier, images: Tensor) -> Outputs:
    """What every block of a model of ours gives (B, N, D), its features (B, F) and, if it has any, its logits."""
    model, found = classifier.model.to(images.dtype), dict[str, Tensor]()

    def receive(kind: str, layer: int, block: Tensor) -> None:
        found[f"block {layer}"] = block

    with torch.inference_mode():
        if isinstance(model, VisionTransformer):
            features = model.features(images, Trace(receive, blocks=range(model.config.layers)))
        else:
            features = _watched(model, images, found)
        found["features"] = features
        if model.classifier is not None:
            found["logits"] = model.classify(features)
    return found


def _watched(model: CNN, images: Tensor, found: dict[str, Tensor]) -> Tensor:
    """A CNN's features; what each of its blocks gives (B, F, h, w) is added to ``found``."""
    hooks = [
        block.register_forward_hook(reference.receiver(found, f"block {layer}"))
        for layer, block in enumerate(model.blocks())
    ]
    try:
        return model.features(images)
    finally:
        for hook in hooks:
            hook.remove()


def difference(where: str, a: Tensor, b: Tensor) -> Difference:
    """How far two tensors of one shape are apart."""
    gap = a.double() - b.double()
    scale = float(b.double().norm())
    return Difference(where, float(gap.norm()) / scale if scale else float(gap.norm()), float(gap.abs().max()))


def _noise(config: Architecture) -> Tensor:
    return torch.randn(2, config.channels, *config.image_size, generator=torch.Generator().manual_seed(0))


def _pictures(classifier: Classifier, images: str | Path | Sequence[str | Path]) -> Tensor:
    """(B, C, H, W) of the first pictures that can be read."""
    found: list[Tensor] = []
    for path in islice(iter_images([images] if isinstance(images, (str, Path)) else images), MOST_IMAGES):
        try:
            found.append(load_picture(path, classifier.card.preprocessing))
        except UnreadableImage as error:
            raise UserError(f"{path} cannot be read ({error.reason}): leave it out.") from None
    return torch.stack(found)
