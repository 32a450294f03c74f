"""``vitrail recipes``."""

from __future__ import annotations

from typing import Annotated

import typer

from vitrail.cli.options import Json, print_json


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one in full.")] = None,
    as_json: Json = False,
) -> None:
    """List the papers' settings by name, or show one with the place of every setting in the paper."""
    from vitrail.recipes import index
    from vitrail.report.terminal import Show

    show = Show(out=True)
    if name is None:
        every = index.recipes()
        if as_json:
            print_json([recipe.summary() for recipe in every])
            return
        rows = [recipe.listed() for recipe in every]
        show.table(["name", "makes", "data", "top-1 %", "source"], rows, words=5)
        show.say("top-1 is the accuracy reported; ?: not held against the paper; -: none known here.")
        show.say("vitrail recipes NAME says of every setting where it stands.")
        return
    recipe = index.recipe(name)
    if as_json:
        print_json(recipe.to_dict())
        return
    show.say(f"$ {recipe.command}")
    show.say(f"{recipe.what} on {recipe.data.name} ({recipe.cited})")
    show.table(["setting", "value", "where it stands"], [list(row) for row in recipe.describe()], words=3)
