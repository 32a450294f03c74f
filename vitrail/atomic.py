"""Files and folders that are either wholly there or not there at all.

Everything Vitrail writes goes beside its destination first, is flushed to the disk, and is renamed
into place; an exception, Ctrl-C or a full disk on the way leaves what stood there before.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrail.errors import UserError

MANY = 100
"""Files from which on the whole system is flushed once, rather than each of them."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    Raises:
        UserError: ``path`` is a folder, the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    if os.path.isdir(path):  # where Path.is_dir would raise for a name that is too long
        raise UserError(f"{path} is a folder: name a file to write.")
    beside: Path | None = None
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
            os.close(handle)
            beside = Path(name)
        with explained(path, _FULL):
            yield beside
        with explained(path):
            _flush(beside)
            beside.chmod(0o666 & ~_umask())  # mkstemp makes files private; ours are ordinary ones
            beside.replace(path)
            _flush(path.parent)
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that becomes ``path`` on success and vanishes on failure.

    Args:
        replace: a folder that is there goes when the new one is whole, and stays until then.

    Raises:
        UserError: ``path`` exists already, the disk is full, or the parent cannot be written.
    """
    path = Path(path)
    if not replace:
        refuse_existing(path)
    beside: Path | None = None
    before: Path | None = None
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        with explained(path, _FULL):
            yield beside
        if not replace:
            refuse_existing(path)  # again: someone else may have written there meanwhile
        with explained(path):
            _make_ordinary(beside)
            _flush_all(beside)
            if replace and path.is_dir():
                before = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
                with suppress(FileNotFoundError):  # another process replaces it too
                    path.rename(before / path.name)
            elif path.is_dir():  # an empty folder: rename onto it is what only POSIX allows
                path.rmdir()
            beside.rename(path)
            _flush(path.parent)
    finally:
        if before is not None and not path.exists():  # stopped between the two
            with suppress(OSError):
                (before / path.name).rename(path)
        for left in (beside, before):
            if left is not None:
                shutil.rmtree(left, ignore_errors=True)


def move_into(folder: Path, beside: Path, last: str) -> None:
    """Move all that is in ``beside``, a folder on the same disk, into ``folder``, in place of what is called the same.

    Each file and folder is there wholly or not at all, and ``last`` only when all others are.

    Raises:
        UserError: ``folder`` cannot be written.
    """
    with explained(folder):
        for path in sorted(beside.iterdir(), key=lambda path: (path.name == last, path.name)):
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        _flush(folder)
        beside.rmdir()


def refuse_existing(path: Path) -> None:
    """Raise UserError when ``path`` is anything but an empty folder or nothing at all."""
    path = Path(path)
    with explained(path):
        free = not any(path.iterdir()) if path.is_dir() else not path.exists()
    if not free or path.is_symlink():
        raise UserError(_EXISTS.format(path))


def refuse_unwritable(path: Path) -> None:
    """Raise UserError when ``path`` could not be made, so that long work is not done for nothing."""
    above = next(folder for folder in Path(path).absolute().parents if os.path.exists(folder))
    if not above.is_dir():
        raise UserError(f"{path} cannot be written: {above} is a file, not a folder.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: you may not write in {above}; choose another place.")


_EXISTS = "{} exists already: choose another place, or remove it first."
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BLOCKED = {errno.ENOTDIR, errno.EEXIST}
_TAKEN = {errno.ENOTEMPTY}
_TOO_LONG = {errno.ENAMETOOLONG}
_MENDABLE = frozenset(_FULL | _DENIED | _BLOCKED | _TAKEN | _TOO_LONG)


@contextmanager
def explained(path: Path, mendable: Set[int] = _MENDABLE) -> Iterator[None]:
    """Turn the errors a person can mend into sentences and let the others pass.

    While the caller writes, only a full disk is explained: a photo it may not read is not about ``path``.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in mendable:
            raise
        if error.errno in _FULL:
            text = (
                f"The disk is full while writing {path}: free some space and run the same command again; "
                "nothing was changed there."
            )
        elif error.errno in _DENIED:
            text = f"{path} cannot be written ({error.strerror}): choose a place you may write to."
        elif error.errno in _TAKEN:  # another process put it there since we looked
            text = _EXISTS.format(path)
        elif error.errno in _TOO_LONG:
            text = f"{path} cannot be written: its name is too long; choose a shorter one."
        else:
            text = f"{path} cannot be written: a part of that path is a file, not a folder."
        raise UserError(text) from error


def _flush(path: Path) -> None:
    """Have the disk hold what was written (fsync; a folder's entry too where the system lets us)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_all(folder: Path) -> None:
    """Flush a folder and what is below it; of thousands of files at once, since one by one takes a minute."""
    paths = [folder, *folder.rglob("*")]
    if len(paths) > MANY and hasattr(os, "sync"):
        os.sync()
        return
    for path in reversed(paths):
        _flush(path)


def _make_ordinary(folder: Path) -> None:
    """Give all in a folder the rights a new file has: mkdtemp and safetensors make private ones."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
