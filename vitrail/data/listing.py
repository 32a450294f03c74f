"""Which pictures lie below a folder: every directory is listed once, and only paths are held."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vitrail.errors import UserError

IMAGE_EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
    ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".pcx", ".sgi", ".qoi", ".heic", ".heif",
})  # fmt: skip
"""HEIC is among them although Pillow cannot read it: such a photo is to be named, not passed over."""

Entry = tuple[str, bool]
"""A name in a folder, and whether it is itself a folder."""


def extension(name: str) -> str:
    """``.jpg`` for ``A.JPG``; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def entries(folder: str | Path) -> list[Entry]:
    """What lies in ``folder``, sorted by name; hidden things and macOS's ``__MACOSX`` are left out.

    Raises:
        UserError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            kept = [(e.name, _is_folder(e)) for e in found if not e.name.startswith(".") and e.name != "__MACOSX"]
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}): check the path and its permissions.") from error
    return sorted(kept)


def images_below(folder: Path, others: Counter[str] | None = None, lenient: bool = False) -> Iterator[Path]:
    """Yield the pictures in ``folder`` by extension, sorted, then those of each folder in it, one after the other.

    A folder reached a second time through a symbolic link is not walked again, nor is one that
    holds ``folder``. ``others`` counts the files that are not pictures, by extension.

    Args:
        lenient: yield a folder that cannot be listed in the place of its pictures; whoever reads it as
            one will say why it is none.

    Raises:
        UserError: a folder cannot be listed.
    """
    seen = {_identity(parent) for parent in Path(os.path.realpath(folder)).parents}
    pending = [folder]
    while pending:
        here = pending.pop()
        if (identity := _identity(here)) in seen:
            continue
        seen.add(identity)
        below = []
        try:
            found = entries(here)
        except UserError:
            if not lenient:
                raise
            yield here
            continue
        for name, is_folder in found:
            if is_folder:
                below.append(here / name)
            elif extension(name) in IMAGE_EXTENSIONS:
                yield here / name
            elif others is not None:
                others[extension(name)] += 1
        pending += reversed(below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link to itself: whoever reads it as a file will say so
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    try:
        info = os.stat(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}): check the path and its permissions.") from error
    return (info.st_dev, info.st_ino)
