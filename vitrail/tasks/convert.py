"""A model from anywhere, written in another library's words and read back to be sure."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitrail.atomic import new_file, new_folder, refuse_existing
from vitrail.config import Size, ViTConfig, parse_size
from vitrail.errors import UserError
from vitrail.report.terminal import Show
from vitrail.tasks.classifier import download_progress
from vitrail.weights.dialects import written
from vitrail.weights.load import Loaded, Source, load_weights
from vitrail.weights.report import LoadReport
from vitrail.weights.store import write_model

OURS = "vitrail"


@dataclass(frozen=True)
class Converted:
    """What was written."""

    out: Path
    to: str
    report: LoadReport
    """What happened to every tensor of the source."""
    lost: tuple[str, ...]
    """What the other library has no words for, and the model can live without."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        fates = [{"tensor": fate.tensor, "what": fate.what, "note": fate.note} for fate in self.report]
        return {"out": str(self.out), "to": self.to, "lost": list(self.lost), "tensors": fates}


def convert(
    source: Source,
    out: str | Path,
    to: str,
    *,
    resolution: int | str | Size | None = None,
    patch: int | str | Size | None = None,
    heads: int | None = None,
    architecture: str | None = None,
    drop_head: bool = False,
    quiet: bool = True,
) -> Converted:
    """Write a model in another library's words.

    What was written is read back before it takes its place, and must hold the same numbers, bit for bit.

    Args:
        source: whatever ``vitrail.load`` takes.
        out: the folder, or file, to make: a ``.npz`` for google, a ``.safetensors`` for torchvision.
        to: ``vitrail``, ``google``, ``timm``, ``huggingface`` or ``torchvision``.
        resolution: another image size, to which the positions are resampled; None: what the source is fed.
        patch: another patch size, to which the patches' kernel is resampled (FlexiViT).
        heads, architecture: what the source does not say; see ``load``.
        drop_head: leave out the classifier, pre-logits, and pooling of several layers or of class token and mean, which
            was chosen for the classifier: what is left gives the class token, or the mean where there is none.
        quiet: show no progress.

    Raises:
        UserError: the source cannot be loaded, the other library has no words for something that decides what the
            model answers, or ``out`` exists or cannot be written.
    """
    path = Path(out)
    words = None if to == OURS else written(to)
    if words is not None and words.suffix and path.suffix != words.suffix:
        raise UserError(
            f"{to} is written as a {words.suffix} file: name it so, such as {path.with_suffix(words.suffix)}."
        )
    if words is not None and words.suffix and os.path.lexists(path):
        raise UserError(f"{path} exists already: name another file, or remove it.")
    refuse_existing(path)
    with download_progress(Show(quiet), str(source) if isinstance(source, (str, Path)) else "") as progress:
        loaded = load_weights(
            source,
            image_size=None if resolution is None else parse_size(resolution),
            patch=None if patch is None else parse_size(patch),
            heads=heads,
            architecture=architecture,
            classes=() if drop_head else None,
            progress=progress,
        )
    if drop_head:
        loaded = _plainly_pooled(loaded)
    if words is not None:
        words = written(to, loaded.card.architecture)
    with new_file(path) if words is not None and words.suffix else new_folder(path) as beside:
        if words is None:
            write_model(beside, loaded.card, loaded.tensors)
        else:
            words.write(loaded.card, loaded.tensors, beside)
        config = loaded.card.architecture
        # A folder says how many heads there are; of the files only some do.
        file = words is not None and bool(words.suffix)
        heads = config.encoder.heads if file and isinstance(config, ViTConfig) else None
        again = load_weights(beside, image_size=config.image_size, heads=heads)
        if not same_numbers(loaded, again):
            raise UserError(f"{path} did not read back as it was written, so it was not kept: please report this.")
    return Converted(path, to, loaded.report, () if words is None else words.lost)


def _plainly_pooled(loaded: Loaded) -> Loaded:
    config = loaded.card.architecture
    if not isinstance(config, ViTConfig) or not (config.head.layers > 1 or {"class", "mean"} <= set(config.head.parts)):
        return loaded
    head = replace(config.head, layers=1, parts=("class",) if "class" in config.tokens else ("mean",))
    return replace(loaded, card=replace(loaded.card, architecture=config.with_head(head)))


def same_numbers(one: Loaded, other: Loaded) -> bool:
    """Whether two models have the same tensors, bit for bit."""
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )
