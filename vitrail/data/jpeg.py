"""A large JPEG decoded at a half, a quarter or an eighth of its size, for a fraction of the time.

JPEG keeps blocks of 8 x 8 frequencies, and a decoder can turn each into 4 x 4, 2 x 2 or one pixel from the lowest
of them alone. That leaves more pixels than are needed, so that the resizing after it still decides what is seen.
"""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

MARGIN = 2.5
"""How many times the pixels a side that are needed must be left. The resized picture then differs from that of the
whole one by about half a level of 255 in the mean, as if one column of the photo had been cut off first. Twice as many
would do for 0.8; three times as many would leave a photo of 12 megapixels at a half instead of a quarter."""

_BLOCKS = frozenset({0xC0, 0xC1, 0xC2})
"""Start of a baseline, extended sequential or progressive frame (ITU-T T.81, table B.1)."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA


def divisor(surplus: float) -> int:
    """By which of 1, 2, 4, 8 a picture with ``surplus`` times the pixels a side that are needed may be divided."""
    return next((number for number in (8, 4, 2) if surplus / number >= MARGIN), 1)


def divide(image: Image.Image, file: BinaryIO, number: int) -> tuple[float, float] | None:
    """Have a JPEG that was opened from ``file``, and not loaded yet, decoded at 1/``number`` of its size if it can be.

    Returns:
        Width and height of the picture in pixels to come, of which the last may be incomplete; None: it is left whole.
    """
    if number > 1 and _in_blocks(file):
        drafted = image.draft(None, (image.width // number, image.height // number))
        if drafted is not None:
            return drafted[1][2], drafted[1][3]
    return None


def _in_blocks(file: BinaryIO) -> bool:
    """Whether a JPEG has one frame, made of blocks of frequencies; no if anything about its header is odd.

    A lossless frame has no blocks: libjpeg decodes it at its full size whatever was asked for, into memory that
    Pillow got for the reduced one.
    """
    file.seek(0)
    if file.read(2) != b"\xff\xd8":
        return False
    frames: list[int] = []
    while True:
        segment = file.read(4)
        marker, length = segment[1:2], int.from_bytes(segment[2:], "big")
        if segment[:1] != b"\xff" or length < 2 or not (0xC0 <= marker[0] < 0xD0 or 0xDA <= marker[0] < 0xFF):
            return False
        if marker[0] == _SCAN:
            return len(frames) == 1 and frames[0] in _BLOCKS
        if marker[0] in _FRAMES:
            frames.append(marker[0])
        file.seek(length - 2, 1)
