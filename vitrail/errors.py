"""The one exception a person is meant to read, and the end of its sentence where a name is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the caller can mend: one sentence with the cause and the remedy.

    The command line prints the sentence and exits with code 2; nothing half-written stays behind.
    """


MOST_NAMES = 24
"""How many known names a sentence lists when none is near."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """``: did you mean X?``-style tail of a sentence, or what is known when nothing is near."""
    known = list(known)
    folded = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    if near:
        return f"; the nearest is {folded[near[0]]}"
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"; known are {', '.join(known[:MOST_NAMES])}{more}"
