"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

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
Device = Annotated[str | None, typer.Option(help="cpu, cuda, and so on; by default the fastest kind here.")]


def print_json(document: Any) -> None:
    """One document on standard output, in ASCII, which any terminal takes; numbers JSON has no word for become null."""
    print(json.dumps(_finite(document), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
