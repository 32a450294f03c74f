"""A recipe at a size at which it can be tried in a moment, with all its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitrail.recipes.recipe import Recipe
from vitrail.recipes.source import Data, Span

CLASSES = 3
NARROW: dict[str, dict[str, Any]] = {
    "mae": {"layers": 1, "width": 24, "heads": 3},
    "moco-v3": {"hidden": 32, "outputs": 16},
}
"""What objectives' own modules are shrunk to."""


def toy(recipe: Recipe) -> Recipe:
    """The same recipe with 2 layers of width 24, patches of 4 of 16 x 16 pixels, batches of 4, and 2 steps.

    Whether there are a classifier, a pre-logits layer, dropout, drop path and so on is as it was.
    """
    config, kind = recipe.architecture, recipe.objective.kind
    labelled = kind == "supervised"
    return replace(
        recipe,
        variant="2 x 24, patch 4",
        architecture=replace(
            config,
            encoder=replace(config.encoder, layers=2, width=24, heads=3, mlp_width=48),
            patch=(4, 4),
            image_size=(16, 16),
            head=replace(
                config.head,
                classes=CLASSES if labelled else 0,
                prelogits=None if config.head.prelogits is None else 24,
            ),
        ),
        objective=replace(recipe.objective, arguments={**recipe.objective.arguments, **NARROW.get(kind, {})}),
        data=Data(recipe.data.name, 8, CLASSES if labelled else None),
        batch_size=4,
        duration=Span(2, "steps"),
        warmup=Span(min(recipe.warmup.amount, 1), "steps"),
    )
