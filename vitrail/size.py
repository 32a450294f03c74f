"""Heights and widths: of images, patches and grids."""

from __future__ import annotations

import re
import typing

from vitrail.errors import UserError

Size = tuple[int, int]
"""Height and width, in that order: pixels of an image or a patch, or cells of a grid."""


def size_text(size: Size) -> str:
    """``224x168`` for (224, 168): height x width."""
    return f"{size[0]}x{size[1]}"


def parse_size(text: str | int | typing.Sequence[int]) -> Size:
    """``224``, ``224x168`` (height x width) or a pair of integers -> (height, width).

    Raises:
        UserError: it is none of these.
    """
    if isinstance(text, int):
        numbers: list[int] = [text, text]
    elif isinstance(text, str):
        if not re.fullmatch(r"\d+(x\d+)?", text.strip().lower()):
            raise UserError(f"{text!r} is not a resolution: write 224, or 224x168 for height x width.")
        parts = [int(part) for part in text.strip().lower().split("x")]
        numbers = parts * 2 if len(parts) == 1 else parts
    else:
        numbers = [int(number) for number in text]
    if len(numbers) != 2 or min(numbers) < 1:
        raise UserError(f"{text!r} is not a resolution: write 224, or 224x168 for height x width.")
    return (numbers[0], numbers[1])


LARGEST = 16_384
"""Pixels a side beyond which a resolution is taken for a slip."""


def check_resolution(image_size: Size, patch: Size) -> None:
    """Raise UserError unless the image is a whole number of patches; names the nearest sizes that are."""
    if max(image_size) > LARGEST:
        raise UserError(
            f"A resolution of {size_text(image_size)} is beyond {LARGEST} pixels a side: choose a smaller one."
        )
    if all(pixels % cell == 0 and pixels > 0 for pixels, cell in zip(image_size, patch, strict=True)):
        return
    below = tuple(max(pixels // cell, 1) * cell for pixels, cell in zip(image_size, patch, strict=True))
    above = tuple(max(-(-pixels // cell), 1) * cell for pixels, cell in zip(image_size, patch, strict=True))
    square = image_size[0] == image_size[1] and patch[0] == patch[1]
    nearest = [str(size[0]) if square else size_text((size[0], size[1])) for size in dict.fromkeys((below, above))]
    raise UserError(
        f"A resolution of {size_text(image_size)} is not a whole number of patches of {size_text(patch)}: "
        f"the nearest sizes are {' and '.join(nearest)}."
    )
