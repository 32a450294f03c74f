"""Tables and sections of Markdown pages that commands write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitrail.atomic import new_file, refuse_unwritable
from vitrail.errors import UserError


def refuse_page(page: Path) -> None:
    """Raise UserError when ``write_section`` could not write the page, so that long work is not done for nothing."""
    if os.path.isdir(page):  # where Path.is_dir would raise for a name that is too long
        raise UserError(f"The page {page} is a folder: name a file, such as {page / 'evidence.md'}.")
    refuse_unwritable(page)


def write_section(page: Path, name: str, text: str, title: str = "Evidence") -> None:
    """Put a section between its marks in a page, at the end if it has none yet; a new page gets the title.

    Raises:
        UserError: the page cannot be written.
    """
    before = page.read_text(encoding="utf-8") if page.is_file() else f"# {title}\n"
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(first)}.*?{re.escape(last)}", re.DOTALL)
    section = f"{first}\n{text}\n{last}"
    after = pattern.sub(lambda _: section, before) if pattern.search(before) else f"{before.rstrip()}\n\n{section}\n"
    with new_file(page) as beside:
        beside.write_text(after, encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
