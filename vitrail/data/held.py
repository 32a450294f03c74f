"""Decoded pictures: held in memory where they are small enough, read again each time where not."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.config import Preprocessing, Size
from vitrail.data.ahead import ahead
from vitrail.data.preprocess import resized
from vitrail.data.read import Extent, UnreadableImage, read_image, read_reduced
from vitrail.errors import UserError

DECODED_AHEAD = 32
"""Pictures that may wait for being put away: large ones take tens of megabytes each."""
TRIED = 32
"""Pictures that the size of all is estimated from."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """RGB pictures by number, the same whether they are held or not; can be sent to another process."""

    paths: list[Path]
    shortest: int | None = None
    """Length that the shorter side of a larger picture is reduced to; None: all are left as they are."""
    pixels: np.ndarray | None = None
    """All rows of all pictures, one after the other (bytes,); None: they are read again each time."""
    places: np.ndarray | None = None
    """First byte, height and width of each (n, 3)."""
    how: Preprocessing | None = None
    """Whole pictures as a model is shown them: resized and cut to its size; then ``shortest`` does not count."""

    def read(self, path: Path) -> Image.Image:
        """A picture from its file.

        Raises:
            UnreadableImage: the file gives none.
        """
        if self.how is not None:
            return resized(path, self.how)
        if self.shortest is None:
            return read_image(path)
        shortest = self.shortest
        return reduced(*read_reduced(path, lambda size: min(size) / shortest), shortest)

    def __call__(self, number: int) -> Image.Image:
        """The picture of a number.

        Raises:
            UserError: it is not held, and cannot be read any more.
        """
        if self.pixels is None or self.places is None:
            path = self.paths[number]
            try:
                return self.read(path)
            except UnreadableImage as error:
                raise UserError(
                    f"{path} could be read before and no longer can ({error.reason}): put it back, and go on."
                ) from None
        start, height, width = (int(value) for value in self.places[number])
        return Image.fromarray(self.pixels[start : start + 3 * height * width].reshape(height, width, 3))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        return 0 if self.pixels is None else self.pixels.nbytes


_remembered: dict[tuple[Any, ...], tuple[Pictures, dict[Path, str]]] | None = None


def remember() -> None:
    """From now on ``hold`` does not read again what it kept in memory the last two times; files must not change.

    For a process that makes run after run of one data set.
    """
    global _remembered
    _remembered = {}


def forget() -> None:
    """End what ``remember`` began."""
    global _remembered
    _remembered = None


def hold(
    pictures: Pictures,
    most: float,
    advance: Callable[[int, int | None], None],
    known: Mapping[Path, str] | None = None,
) -> tuple[Pictures, dict[Path, str]]:
    """Read every picture once, and keep it where all take at most ``most`` bytes.

    Args:
        known: pictures that cannot be read and why, from an earlier time; then what cannot be kept is not read.

    Returns:
        Those that can be read, and for each of the others the reason why not.
    """
    key = (tuple(pictures.paths), pictures.shortest, pictures.how)
    if _remembered and key in _remembered and _remembered[key][0].bytes <= most:
        return _remembered[key]
    fits = estimated_bytes(pictures) <= most
    if known is not None and not fits:
        return replace(pictures, paths=[path for path in pictures.paths if path not in known]), dict(known)
    kept: list[Path] = []
    places: list[tuple[int, int, int]] = []
    pixels = bytearray()
    failed: dict[Path, str] = {}
    with closing(ahead(pictures.paths, partial(_decoded, pictures), DECODED_AHEAD)) as decoded:
        for done, (path, array) in enumerate(zip(pictures.paths, decoded, strict=True), 1):
            if isinstance(array, str):
                failed[path] = array
            else:
                kept.append(path)
                if fits := fits and len(pixels) + array.nbytes <= most:
                    places.append((len(pixels), *array.shape[:2]))
                    pixels += array.reshape(-1).data
                else:
                    pixels.clear()
            if done % 64 == 0 or done == len(pictures):
                advance(done, len(pictures))
    if not fits:
        return replace(pictures, paths=kept), failed
    held = np.frombuffer(pixels, np.uint8)
    found = replace(pictures, paths=kept, pixels=held, places=np.array(places, np.int64).reshape(-1, 3)), failed
    if _remembered is not None:
        for oldest in list(_remembered)[: len(_remembered) - 1]:
            del _remembered[oldest]
        _remembered[key] = found
    return found


def estimated_bytes(pictures: Pictures) -> float:
    """What all would take in memory, from a few of them."""
    step = -(-len(pictures) // TRIED)
    tried = [_decoded(pictures, path) for path in pictures.paths[::step]]
    sizes = [array.nbytes for array in tried if not isinstance(array, str)]
    return len(pictures) * sum(sizes) / max(len(sizes), 1)


def usual_size(paths: Sequence[Path]) -> int:
    """The median length of the shorter side, of a few of the pictures; 0 if none can be read."""
    found = (_decoded(Pictures([]), path) for path in paths[:: -(-len(paths) // TRIED)])
    sides = sorted(min(array.shape[:2]) for array in found if not isinstance(array, str))
    return int(sides[len(sides) // 2]) if sides else 0


def enough(size: Size, smallest_crop: float) -> int:
    """Length of the shorter side from which on no random crop has to be enlarged to ``size``.

    The narrowest crop has 3/4 of the wanted aspect (``vitrail.data.augment``).
    """
    return math.ceil(max(size) / math.sqrt(0.75 * smallest_crop))


def reduced(image: Image.Image, extent: Extent, shortest: int) -> Image.Image:
    """A picture whose shorter side is ``shortest`` pixels at most, its aspect kept; antialiased.

    Args:
        extent: of the picture in the image.
    """
    side = min(extent.size)
    if side <= shortest:
        return image
    height, width = (max(1, round(length * shortest / side)) for length in extent.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, extent.box)


def fingerprint(paths: Sequence[Path]) -> list[tuple[str, int]]:
    """Name below the folder that all have in common, and bytes, of each file; -1 for one that cannot be opened."""
    root = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
    return [(os.path.relpath(path.absolute(), root).replace(os.sep, "/"), _size(path)) for path in paths]


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # whoever reads it will say so
        return -1


def _decoded(pictures: Pictures, path: Path) -> np.ndarray | str:
    """(H, W, 3) uint8, or the reason why there is none."""
    try:
        return np.asarray(pictures.read(path))
    except UnreadableImage as error:
        return error.reason
