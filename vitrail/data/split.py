"""Holding pictures out for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial

from vitrail.errors import UserError


def held_out(keys: Mapping[str, Sequence[str]], fraction: float, seed: int) -> set[str]:
    """Choose about ``fraction`` of each class's keys, at least one, and leave at least two.

    A key is drawn by a hash of (seed, class, key): neither the order of the files nor other
    classes change it, and a picture added later moves at most one other.

    Args:
        keys: class name -> its pictures' names, unique over all classes.

    Raises:
        UserError: ``fraction`` is not between 0 and 1, or a class has fewer than three pictures.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"The fraction held out for validation must lie between 0 and 1, not {fraction}.")
    chosen: set[str] = set()
    for name, members in keys.items():
        if len(members) < 3:
            raise UserError(
                f"The class {name!r} has too few pictures ({len(members)}): give it at least three, "
                "two to train on and one to hold out."
            )
        count = min(max(1, round(len(members) * fraction)), len(members) - 2)
        chosen.update(sorted(members, key=partial(_rank, seed, name))[:count])
    return chosen


def _rank(seed: int, name: str, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}\0{key}".encode(errors="surrogateescape")).digest()
