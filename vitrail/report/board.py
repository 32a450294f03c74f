"""Curves for TensorBoard, written as training goes along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vitrail.errors import UserError


class Board(Protocol):
    """Takes the numbers of one step."""

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None: ...


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Board]:
    """Yield what to call with a step and its numbers; with no folder it does nothing.

    Raises:
        UserError: TensorBoard is not installed, or the folder cannot be written.
    """
    if folder is None:
        yield lambda step, numbers: None
        return
    writer = _writer(folder)

    def write(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    try:
        yield write
    finally:
        writer.close()


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install 'vitrail[tensorboard]'.") from None
    try:
        return SummaryWriter(str(folder))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): choose another folder for TensorBoard."
        ) from None
