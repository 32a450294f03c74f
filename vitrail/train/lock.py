"""One process at a time in a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrail.atomic import explained
from vitrail.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


class Busy(UserError):
    """Another process holds the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``, made where it is missing, against other processes until the block ends.

    The system lets go of the lock when a process ends in whatever way, so a killed one leaves none behind;
    only where there are no such locks (Windows) the file itself is the lock, and may have to be removed.

    Raises:
        Busy: another process holds it.
        UserError: the folder cannot be written.
    """
    path = Path(folder) / NAME
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        with _own_file(path):
            yield
        return
    with explained(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"{folder} is being trained in by {_holder(path)}: wait for it to end, or choose another folder."
            ) from None
        with explained(path):
            os.truncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)


@contextmanager
def _own_file(path: Path) -> Iterator[None]:
    try:
        with explained(path, frozenset()):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise Busy(
            f"{path.parent} is being trained in by {_holder(path)}: wait for it to end, or, if there is no such "
            f"process any more, remove {path}."
        ) from None
    try:
        os.write(handle, str(os.getpid()).encode())
        os.close(handle)
        yield
    finally:
        path.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    try:
        number = path.read_text(encoding="utf-8").strip()
    except OSError:
        number = ""
    return f"process {number}" if number.isdigit() else "another process"
