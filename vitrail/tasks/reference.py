"""A model as another library runs it: loaded by that library itself, watched by its own hooks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.config import ViTConfig
from vitrail.errors import UserError
from vitrail.model.vision import VisionTransformer
from vitrail.tasks.classifier import Classifier
from vitrail.weights.dialects import written
from vitrail.weights.efficientnets import NAME, scale_of
from vitrail.weights.store import is_model, read_json, read_tensors

LIBRARIES = {"timm": "timm", "transformers": "huggingface", "torchvision": "torchvision"}
"""Libraries by name, and whose dialect each reads."""


def outputs(library: str, source: str, ours: Classifier, scratch: Path, images: Tensor) -> Mapping[str, Tensor]:
    """What every block of a model gives (B, N, D), and its logits, as ``library`` computes them.

    The library reads the source itself where it is in its own dialect and at its own resolution; else what
    Vitrail writes for it.

    Args:
        ours: the source as Vitrail loaded it, at the resolution of ``images``.
        scratch: an empty folder, for what is written.

    Raises:
        UserError: the library is not installed, or has no words for the model.
    """
    make: dict[str, Callable[[str, Classifier, Path], tuple[nn.Module, Iterable[nn.Module], Callable[[Tensor], Any]]]]
    make = {"timm": _timm, "transformers": _transformers, "torchvision": _torchvision}
    try:
        model, blocks, run = make[library](source, ours, scratch)
    except ImportError:
        raise UserError(f"{library} is not installed here: pip install {library}, or compare two models.") from None
    found: dict[str, Tensor] = {}
    for layer, block in enumerate(blocks):
        block.register_forward_hook(receiver(found, f"block {layer}"))
    model.eval().to(images.dtype)
    with torch.inference_mode():
        logits = run(images)
    return {**found, **({"logits": logits} if ours.model.classifier is not None else {})}


def receiver(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that keeps what a module gives, or the first of several things."""

    def receive(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found[name] = output[0] if isinstance(output, tuple) else output

    return receive


def _folder(source: str, dialect: str, key: str, ours: Classifier, scratch: Path) -> Path:
    """The source itself where it is a folder of that dialect, otherwise the model written for it."""
    config = Path(source) / "config.json"
    if os.path.exists(config) and not is_model(Path(source)) and key in read_json(config):
        return Path(source)
    folder = scratch / "model"
    written(dialect, ours.card.architecture).write(ours.card, ours.model.state_dict(), folder)
    return folder


def _timm(source: str, ours: Classifier, scratch: Path) -> Any:
    import timm

    folder = _folder(source, "timm", "architecture", ours, scratch)
    if isinstance(ours.model, VisionTransformer):
        size = ours.card.architecture.image_size
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size)
        return model, model.blocks, model
    cnn: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    stages = [stage.blocks for stage in cnn.stages] if hasattr(cnn, "stages") else cnn.blocks
    return cnn, [block for stage in stages for block in stage], cnn


def _transformers(source: str, ours: Classifier, scratch: Path) -> Any:
    import transformers

    folder = _folder(source, "huggingface", "model_type", ours, scratch)
    auto = transformers.AutoModel if ours.model.classifier is None else transformers.AutoModelForImageClassification
    model = auto.from_pretrained(folder)
    base = getattr(model, model.base_model_prefix, model)
    blocks = base.layers if hasattr(base, "layers") else base.encoder.layer
    native = ours.card.architecture.image_size
    size = base.config.image_size
    other = (
        native != ((size, size) if isinstance(size, int) else tuple(size)) and "dinov2" not in base.config.model_type
    )
    options = {"interpolate_pos_encoding": True} if other else {}

    def run(images: Tensor) -> Tensor:
        answer = model(images, **options)
        found: Tensor = answer.logits if hasattr(answer, "logits") else answer.last_hidden_state
        return found

    return model, blocks, run


def _torchvision(source: str, ours: Classifier, scratch: Path) -> Any:
    from torchvision import models

    config = ours.card.architecture
    path = scratch / "model.safetensors"
    written("torchvision", config).write(ours.card, ours.model.state_dict(), path)
    if not isinstance(config, ViTConfig):
        _, scale = scale_of("torchvision", config)
        cnn: Any = getattr(models, NAME.format(scale.lower()))(num_classes=config.head.classes)
        cnn.load_state_dict(read_tensors(path))
        return cnn, [block for stage in list(cnn.features)[1:-1] for block in stage], cnn
    encoder = config.encoder
    model = models.VisionTransformer(
        config.image_size[0],
        config.patch[0],
        encoder.layers,
        encoder.heads,
        encoder.width,
        encoder.mlp_width,
        num_classes=config.head.classes,
        representation_size=config.head.prelogits,
    )
    model.load_state_dict(read_tensors(path))
    return model, model.encoder.layers, model
