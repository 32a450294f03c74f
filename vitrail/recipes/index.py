"""Every recipe by its name: model, data, and, for fine-tuning, ``-to-`` and what it is fine-tuned on."""

from __future__ import annotations

from collections.abc import Callable

from vitrail.config import suggestion
from vitrail.errors import UserError
from vitrail.recipes import mae, moco, small, vit, vit_finetune
from vitrail.recipes.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    result.__name__.replace("_", "-"): result
    for module in (vit, vit_finetune, mae, moco, small)
    for result in module.RESULTS
}
"""Name -> the function that makes it, of that name with underscores."""


def recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in RECIPES:
        raise UserError(f"There is no recipe {name!r}{suggestion(name, RECIPES)}.")
    return RECIPES[name]()


def recipes() -> list[Recipe]:
    """All of them, in the order of the papers."""
    return [make() for make in RECIPES.values()]
