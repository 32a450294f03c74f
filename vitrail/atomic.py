"""Files and folders that are either wholly there or not there at all.

Everything Vitrail writes goes beside its destination first, is flushed to the disk, and is renamed
into place; an exception, Ctrl-C or a full disk on the way leaves what stood there before.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrail.errors import UserError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        beside = Path(name)
        yield beside
        _flush(beside)
        beside.chmod(0o666 & ~_umask())  # mkstemp makes files private; ours are ordinary ones
        beside.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that becomes ``path`` on success and vanishes on failure.

    Raises:
        UserError: ``path`` exists already, the disk is full, or the parent cannot be written.
    """
    path = Path(path)
    refuse_existing(path)
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        yield beside
        for folder, _, names in os.walk(beside):
            for name in names:
                _flush(Path(folder) / name)
            _flush(Path(folder))
        beside.chmod(0o777 & ~_umask())
        if path.is_dir():  # an empty folder made meanwhile: rename onto it is what POSIX allows
            path.rmdir()
        beside.rename(path)
        _flush(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Raise UserError when ``path`` is a file or a folder with something in it."""
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists already: choose another place, or remove it first.")


def _explained(error: OSError, path: Path) -> Exception:
    """Turn the errors a person can mend into sentences; hand the others back as they are."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"The disk is full while writing {path}: free some space and run the same command again; "
            "nothing was changed there."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path} cannot be written ({error.strerror}): choose a place you may write to.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"{path} cannot be written: a part of that path is a file, not a folder.")
    return error


def _flush(path: Path) -> None:
    """Have the disk hold what was written (fsync; a folder's entry too where the system lets us)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
