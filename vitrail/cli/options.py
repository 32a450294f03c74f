"""Options that several commands share, and how results are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from vitrail.errors import UserError
from vitrail.record import to_json

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else there.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no plan while working.")]
Heads = Annotated[int | None, typer.Option(min=1, help="Attention heads, where the source does not say.")]
Architecture = Annotated[
    str | None,
    typer.Option(help="What a bare state dict is (vit_base_patch16_224, dino_vits16, vit_b_16), or none (ViT-S/16)."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures run through the model at a time.")]
Runtime = Annotated[
    str | None,
    typer.Option(
        help="Run it by eager, compiled, onnx or openvino, or openvino:int8 and so on; else as vitrail tune found."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, and so on; by default the fastest kind here.")]


def print_json(document: Any) -> None:
    """One document on standard output."""
    print(to_json(document))


def assignments(words: Sequence[str]) -> dict[str, Any]:
    """``["mixup=0", "betas=0.9,0.95", "schedule=linear"]`` -> names with numbers, lists, truth values, None or words.

    Raises:
        UserError: there is no ``=``.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise UserError(f"{word!r} should be NAME=VALUE, such as weight_decay=0.1.")
        found[name] = [_value(part) for part in text.split(",")] if "," in text else _value(text)
    return found


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
