"""All dialects, and who understands what: a new one is a file beside this and a line here."""

from __future__ import annotations

from vitrail.config import Architecture, ViTConfig, suggestion
from vitrail.errors import UserError
from vitrail.weights.dialect import Checkpoint, Dialect, Found, TwoWay
from vitrail.weights.efficientnets import TimmEfficientNet, TorchvisionEfficientNet
from vitrail.weights.google import Google
from vitrail.weights.huggingface import HuggingFace
from vitrail.weights.originals import ORIGINALS
from vitrail.weights.resnets import GoogleBiT, TimmBiT
from vitrail.weights.timm import Timm
from vitrail.weights.torchvision import Torchvision

DIALECTS: tuple[Dialect, ...] = (
    *(Google(), GoogleBiT(), HuggingFace(), Torchvision(), TorchvisionEfficientNet(), *ORIGINALS),
    *(TimmBiT(), TimmEfficientNet(), Timm()),
)
"""In the order they are asked: timm, whose names others share, last."""


def understand(found: Found) -> Checkpoint:
    """Whoever claims a checkpoint reads it.

    Raises:
        UserError: nobody does, or who does cannot honour it or has something to ask.
    """
    for dialect in DIALECTS:
        if dialect.claims(found):
            return dialect.read(found)
    if found.settings is not None:
        raise UserError(
            f"The config.json of {found.name} is neither transformers' (model_type) nor timm's (architecture) nor "
            "Vitrail's: Vitrail cannot tell what the model is."
        )
    raise UserError(
        f"{found.name} is a state dict whose names Vitrail does not know: give the whole folder with its config.json."
    )


def written(name: str, architecture: Architecture | None = None) -> TwoWay:
    """The dialect of a name such as ``timm``, to write in.

    Args:
        architecture: what is to be written; None: a Vision Transformer.

    Raises:
        UserError: there is none, Vitrail only reads it, or it has no names for such a model.
    """
    writers = [entry for entry in DIALECTS if isinstance(entry, TwoWay)]
    if own := [entry for entry in writers if entry.name == name]:
        kind = ViTConfig if architecture is None else type(architecture)
        fitting = [entry for entry in own if kind in entry.of]
        if not fitting:
            raise UserError(f"{name} has no words for such a CNN: write it as vitrail, which says everything.")
        return fitting[0]
    names = list(dict.fromkeys(entry.name for entry in writers))
    if any(entry.name == name for entry in DIALECTS):
        raise UserError(f"Vitrail reads {name} but does not write it: choose {', '.join(names)} or vitrail.")
    raise UserError(f"There is no library {name!r} to write for{suggestion(name, [*names, 'vitrail'])}.")
