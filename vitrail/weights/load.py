"""A source of weights -> a card, tensors that fit it, and a report of what happened to each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.config import (
    Architecture,
    ModelCard,
    Preprocessing,
    Resampling,
    Size,
    ViTConfig,
    size_text,
    transformer,
)
from vitrail.config import architecture as named
from vitrail.errors import UserError
from vitrail.model.build import build, to_grid
from vitrail.model.patches import resize_patches
from vitrail.weights import hub, store, wheel
from vitrail.weights.dialect import Checkpoint, Found, shapes, translate
from vitrail.weights.dialects import understand
from vitrail.weights.report import Fate, LoadReport

Source = str | Path | Mapping[str, Tensor]


@dataclass(frozen=True)
class Loaded:
    """Everything needed to make a model, nothing of it made yet."""

    card: ModelCard
    tensors: dict[str, Tensor]
    report: LoadReport


def load_weights(
    source: Source,
    *,
    image_size: Size | None = None,
    patch: Size | None = None,
    resampling: Resampling | None = None,
    heads: int | None = None,
    architecture: str | None = None,
    classes: Sequence[str] | None = None,
    progress: wheel.Progress | None = None,
) -> Loaded:
    """Read weights from anywhere, take them to a resolution and give them a head.

    Args:
        source: a Vitrail, Hugging Face or timm folder; a state dict or the file of one; a hub id or
            short name; ``saliency-s14`` or the wheel it comes in; ``none``, random weights.
        image_size: pixels (height, width); None: what the source is fed by default.
        patch: another patch size (height, width): the images stay, the grid changes, kernels and positions
            are resampled to it; None: the source's own.
        resampling: how positions are taken to another grid; None: the source library's own way.
        heads: attention heads, where the source does not say or is to be overruled.
        architecture: the timm name of a bare state dict, or the variant of ``none``.
        classes: names of a new, zero-initialised classifier on the features the source pools; an empty
            sequence drops the old one; None keeps what the source has.
        progress: told of bytes downloaded, for a wheel.

    Returns:
        The card, float32 tensors that fit it, and what happened to each.

    Raises:
        UserError: the source is unknown, unreachable, damaged, or not a model Vitrail can build.
    """
    name = str(source) if isinstance(source, (str, Path)) else "state dict"
    if source == "none":
        native, tensors, fates = _random("ViT-S/16" if architecture is None else architecture, image_size, patch, heads)
    else:
        native, tensors, fates = _read(source, name, heads, architecture, image_size, progress)
    tensors = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    size = image_size or native.preprocessing.size
    old = native.architecture
    config: Architecture
    if isinstance(old, ViTConfig):
        if resampling is not None:
            old = replace(old, position=replace(old.position, resampling=resampling))
        config = replace(old, image_size=size, patch=patch or old.patch)
        tensors, fates = _take_to_patch(tensors, fates, old, config)
        tensors, fates = _take_to_grid(tensors, fates, old, config)
    elif patch is None:
        config = old.at(size)
    else:
        config = transformer(old, "Another patch size")
    names, temperature = native.class_names, native.temperature
    if classes is not None:
        temperature = 1.0
        config, names = config.with_head(replace(config.head, classes=len(classes), prelogits=None)), tuple(classes)
        tensors, fates = _new_head(tensors, fates, config)
    card = ModelCard(config, native.preprocessing.at(size), names, dict(native.provenance), temperature)
    return Loaded(card, tensors, LoadReport(name, tuple(fates)))


@dataclass(frozen=True)
class _Native:
    """A source at its own resolution: the grid of its table, the size it is fed by default."""

    architecture: Architecture
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any]
    temperature: float = 1.0


def _read(
    source: Source,
    name: str,
    heads: int | None,
    architecture: str | None,
    image_size: Size | None,
    progress: wheel.Progress | None,
) -> tuple[_Native, dict[str, Tensor], list[Fate]]:
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path is not None and (own := store.model_folder(path)) is not None:
        path = own
        _refuse(architecture, name)
        card, tensors = store.read_model(path)
        _check_shapes(tensors, shapes(card.architecture), name)
        config = _with_heads(card.architecture, heads)
        found = _Native(config, card.preprocessing, card.class_names, card.provenance, card.temperature)
        return found, tensors, [Fate(tensor, "loaded", "as it is") for tensor in tensors]
    checkpoint = _understand(source, path, name, heads, architecture, image_size, progress)
    checkpoint = replace(checkpoint, architecture=_with_heads(checkpoint.architecture, heads))
    tensors, fates = translate(checkpoint, name)
    found = _Native(checkpoint.architecture, checkpoint.preprocessing, checkpoint.class_names, checkpoint.provenance)
    return found, tensors, fates


def _understand(
    source: Source,
    path: Path | None,
    name: str,
    heads: int | None,
    architecture: str | None,
    image_size: Size | None,
    progress: wheel.Progress | None,
) -> Checkpoint:
    """Find what stands at a source, and whose it is."""
    asked: dict[str, Any] = {"architecture": architecture, "heads": heads, "image_size": image_size}
    if path is None:
        assert isinstance(source, Mapping)
        return understand(Found(name, source, provenance={"source": name}, **asked))
    if name in wheel.WHEELS and not os.path.exists(path):
        _refuse(architecture, name)
        return wheel.understand(wheel.fetch(name, progress), name)
    if os.path.isfile(path):
        for known, entry in wheel.WHEELS.items():
            if path.suffix == ".whl" and path.name == entry.filename:
                _refuse(architecture, name)
                return wheel.understand(path, known)
        tensors = store.read_tensors(path)
        return understand(Found(name, tensors, provenance={"source": name}, **asked))
    provenance: dict[str, Any] = {"source": name}
    if not os.path.exists(path):  # os.path's never raise: a name may be too long, a folder closed to us
        repository = hub.hub_id(name)
        if repository is None:
            raise hub.unknown(name)
        path, commit = hub.download(*repository, asked=name)
        provenance = {"source": repository[0], "revision": commit}
    _refuse(architecture, name)
    if (path / "config.yaml").is_file() and not (path / "config.json").exists():
        raise UserError(
            f"{name} is a run folder that holds no model: one of --method knn never does, and one that was "
            "interrupted does when --resume has taken it to its end."
        )
    settings = store.read_json(path / "config.json")  # first: without it nothing says what the rest is
    processor = path / "preprocessor_config.json"
    return understand(
        Found(
            name,
            store.read_tensors(store.weights_file(path)),
            settings=settings,
            processor=store.read_json(processor) if processor.exists() else None,
            provenance=provenance,
            **asked,
        )
    )


def _refuse(architecture: str | None, name: str) -> None:
    """Raise UserError for an architecture that would silently count for nothing."""
    if architecture is not None:
        raise UserError(f"{name} says itself what it is: leave out the architecture {architecture}.")


def _random(
    name: str, image_size: Size | None, patch: Size | None, heads: int | None
) -> tuple[_Native, dict[str, Tensor], list[Fate]]:
    config = named(name)
    if isinstance(config, ViTConfig):  # both at once: either alone may not go with the other's usual value
        config = replace(config, image_size=image_size or config.image_size, patch=patch or config.patch)
    elif patch is None:
        config = named(name, image_size)
    else:
        config = transformer(config, "A patch size")
    config = _with_heads(config, heads)
    tensors = dict(build(config).state_dict())
    fates = [Fate(tensor, "new", "random, nothing was learned yet") for tensor in tensors]
    return _Native(config, Preprocessing(config.image_size), (), {"source": "none"}), tensors, fates


def _with_heads(config: Architecture, heads: int | None) -> Architecture:
    if heads is None:
        return config
    config = transformer(config, "A number of heads")
    return replace(config, encoder=replace(config.encoder, heads=heads))


def _take_to_patch(
    tensors: dict[str, Tensor], fates: list[Fate], old: ViTConfig, new: ViTConfig
) -> tuple[dict[str, Tensor], list[Fate]]:
    """Resize the patch embedding's kernels (2212.08013, section 3.4)."""
    if old.patch == new.patch:
        return tensors, fates
    name = "patches.projection.weight"
    note = f"{size_text(old.patch)} -> {size_text(new.patch)} (pseudo-inverse)"
    fates = [Fate(name, "resampled", note) if fate.tensor == name else fate for fate in fates]
    return {**tensors, name: resize_patches(tensors[name], new.patch)}, fates


def _take_to_grid(
    tensors: dict[str, Tensor], fates: list[Fate], old: ViTConfig, new: ViTConfig
) -> tuple[dict[str, Tensor], list[Fate]]:
    """Take the positions to another grid, each scheme in its own way; the class token's stay as they are."""
    changed, note = to_grid(tensors, old, new)
    if not note:
        return tensors, fates
    if not any(name.startswith("position.") for name in tensors):
        return tensors, [*fates, Fate("position", "resampled", note)]
    if not changed:
        kept = [replace(fate, note=f"{fate.note}; {note}") for fate in fates if fate.tensor.startswith("position.")]
        return tensors, [*(fate for fate in fates if not fate.tensor.startswith("position.")), *kept]
    fates = [Fate(fate.tensor, "resampled", note) if fate.tensor in changed else fate for fate in fates]
    return {**tensors, **changed}, fates


def _new_head(
    tensors: dict[str, Tensor], fates: list[Fate], config: Architecture
) -> tuple[dict[str, Tensor], list[Fate]]:
    """Drop the old head and put a zero-initialised classifier in its place (none for no classes).

    The head is the classifier and, with it, the pre-logits layer (ViT section 3.2).
    """
    head = ("classifier.", "prelogits.")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(head)}
    fates = [
        Fate(fate.tensor, "ignored", "the source's own head") if fate.tensor.startswith(head) else fate
        for fate in fates
    ]
    if config.head.classes:
        kept["classifier.weight"] = torch.zeros(config.head.classes, config.classifier_width)
        kept["classifier.bias"] = torch.zeros(config.head.classes)
        fates += [Fate(f"classifier.{kind}", "new", "zeros") for kind in ("weight", "bias")]
    return kept, fates


def _check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], where: str) -> None:
    if wrong := set(tensors) ^ set(shapes) or {key for key in shapes if tensors[key].shape != shapes[key]}:
        raise UserError(f"{where} is damaged: its tensor {sorted(wrong)[0]} does not fit its config.json.")
