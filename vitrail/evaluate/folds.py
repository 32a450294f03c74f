"""Labelled pictures in folds, each a small picture of the whole; equal pictures stay together."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from vitrail.errors import UserError


def folds(labels: Sequence[int], contents: Sequence[Hashable], count: int, seed: int = 0) -> list[int]:
    """The fold, 0 to ``count`` - 1, of each picture: as many of each class in every one as can be.

    Pictures with the same content are in one fold, or what is judged would have been learned.

    Args:
        labels: (n,)
        contents: (n,) what a picture holds, such as a hash of it.

    Raises:
        UserError: fewer than two folds, or a class has fewer different pictures than folds.
    """
    if count < 2:
        raise UserError(f"Cross-validation needs at least 2 folds, not {count}.")
    members: dict[int, list[Hashable]] = {}
    home: dict[Hashable, int] = {}
    for label, content in sorted(zip(labels, contents, strict=True), key=lambda pair: (pair[0], str(pair[1]))):
        if content not in home:
            home[content] = label
            members.setdefault(label, []).append(content)
    place: dict[Hashable, int] = {}
    dealt = 0
    for label, own in sorted(members.items()):
        if len(own) < count:
            raise UserError(
                f"A class has {len(own)} different pictures, fewer than the {count} folds: ask for fewer folds, or add "
                "pictures."
            )
        random.Random(f"{seed} {label}").shuffle(own)
        for content in own:
            place[content] = dealt % count
            dealt += 1
    return [place[content] for content in contents]
