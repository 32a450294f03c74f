"""From a decoded picture to the tensor a model was trained on."""

from __future__ import annotations

import math
from itertools import cycle

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from vitrail.config import Interpolation, Preprocessing, Size
from vitrail.data.read import Box, Extent, Picture, read_reduced

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_QUICK = ("bilinear", "bicubic")
"""What PyTorch resizes 8-bit pictures by."""
_QUICK_PIXELS = 1 << 22
"""Of larger pictures it would take copies by the hundred megabytes, and what costs is to decode them."""
_REACH = {"nearest": 1, "bilinear": 1, "bicubic": 2, "lanczos": 3}
"""How far a resized pixel looks to either side, in its own pixels."""

LONGEST = 16
"""A strip longer than this many times its width is cut to it first: enlarged whole, it could fill the memory."""


def load(
    picture: Picture,
    how: Preprocessing,
    out: np.ndarray | None = None,
    max_pixels: int | None = None,
    quick: bool = False,
) -> torch.Tensor:
    """A file or its bytes -> what ``preprocess`` makes of it (C, H, W), decoding of a large JPEG what that needs.

    Whoever shows a model a whole picture, to train, to measure or to use it, calls this or ``resized``.

    Args:
        out: where it is to be written, float32.
        max_pixels: as for ``read_image``.
        quick: whether PyTorch may resize it where it can, a few times as fast. Of a photo's numbers some in a thousand
            are then a level of 255 away, two at most: less than bf16 or int8 change in a model.

    Raises:
        UnreadableImage: the file gives no picture.
    """
    image, extent = _read(picture, how, max_pixels)
    if quick and _may_be_quick(image, extent, how):
        return _standardised(_quickly_resized(image, how), how, out)
    return _standardised(_resized(image, extent, how), how, out)


def resized(picture: Picture, how: Preprocessing, max_pixels: int | None = None) -> Image.Image:
    """A file, or its bytes -> the RGB picture, H x W, that is standardised for the model.

    Raises:
        UnreadableImage: the file gives no picture.
    """
    return _resized(*_read(picture, how, max_pixels), how)


def preprocess(image: Image.Image, how: Preprocessing) -> torch.Tensor:
    """RGB picture of any size -> (C, H, W) float32, resized by Pillow (antialiased) and standardised.

    Equal, pixel for pixel, to transformers' Pillow-backed processors and, where those agree with it,
    to timm's evaluation transform. They differ in the centre crop when an odd number of pixels is to
    go: transformers rounds the offset down, which is done here; timm rounds it to the even neighbour.
    """
    return _standardised(_resized(image, Extent.of(image), how), how)


def _read(picture: Picture, how: Preprocessing, max_pixels: int | None) -> tuple[Image.Image, Extent]:
    return read_reduced(picture, lambda size: _surplus(size, how), max_pixels)


def _may_be_quick(image: Image.Image, extent: Extent, how: Preprocessing) -> bool:
    """Whether PyTorch resizes it, and to Pillow's levels but for two at most.

    Both resize rows first and cut what is below 0 or above 255 before the columns; Pillow, from version 13 on, not
    where more than twice as many rows as columns are to go.
    """
    (rows, columns), box = _plan(extent.size, how)
    if box != extent.box or box != (0, 0, image.width, image.height) or how.interpolation not in _QUICK:
        return False
    in_order = image.height - rows <= max(0, 2 * (image.width - columns))
    return in_order and image.width * image.height <= _QUICK_PIXELS


def _quickly_resized(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """(H, W, 3) levels, as ``_resized`` of the whole image, by PyTorch: its weights are coarser than Pillow's.

    It uses no team of threads for one picture.
    """
    (rows, columns), (height, width) = _plan((image.height, image.width), how)[0], how.size
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last
    enlarged = interpolate(levels, (rows, columns), mode=how.interpolation, antialias=True, align_corners=False)
    above, start = (rows - height) // 2, (columns - width) // 2
    found: np.ndarray = enlarged[0, :, above : above + height, start : start + width].permute(1, 2, 0).numpy()
    return found


def _standardised(image: Image.Image | np.ndarray, how: Preprocessing, out: np.ndarray | None = None) -> torch.Tensor:
    # NumPy, not torch, does the arithmetic: this runs in reading threads, where torch would start
    # a team of its own threads for each. Channel by channel, what one step wrote is still in the cache for the next.
    pixels = np.asarray(image).transpose(2, 0, 1)  # (C, H, W)
    if out is None:
        out = np.empty(pixels.shape, np.float32)
    moments = cycle(zip(how.mean, how.std, strict=True))  # one of each may stand for every channel
    for plane, channel, (mean, std) in zip(pixels, out, moments, strict=False):  # (H, W)
        np.divide(plane, 255, out=channel, dtype=np.float32)
        channel -= np.float32(mean)
        channel /= np.float32(std)
    return torch.from_numpy(out)


def _resized(image: Image.Image, extent: Extent, how: Preprocessing) -> Image.Image:
    """(H, W) as ``how`` says, from an image that holds a picture of ``extent``."""
    height, width = how.size
    (rows, columns), (left, top, right, bottom) = _plan(extent.size, how)
    # The same places in what was decoded, which may be a fraction of the picture.
    across = (extent.box[2] - extent.box[0]) / extent.size[1]
    down = (extent.box[3] - extent.box[1]) / extent.size[0]
    left, right = (extent.box[0] + across * side for side in (left, right))
    top, bottom = (extent.box[1] + down * side for side in (top, bottom))
    return _cut(image, (columns, rows), (left, top, right, bottom), (width, height), how.interpolation)


def _cut(image: Image.Image, whole: Size, box: Box, kept: Size, interpolation: Interpolation) -> Image.Image:
    """The centre's ``kept`` (width, height) of what ``box`` of an image is when resized to ``whole`` (width, height).

    Pillow resizes along the rows first, then along the columns, and rounds to 8 bits after each. So the two can be
    had one by one, to the bit, and only for what is kept of them: a fifth less work for a photo of 4 x 3. (From
    version 13 on it is the other way round where more than twice as many rows as columns are to go.)
    """
    (columns, rows), (width, height), resampling = whole, kept, _RESAMPLING[interpolation]
    start, above = (columns - width) // 2, (rows - height) // 2
    left, top, right, bottom = box
    step = (bottom - top) / rows
    if step < 1.1 or image.height - rows > 1.5 * (image.width - columns):
        return image.resize(whole, resampling, box).crop((start, above, start + width, above + height))
    reach = _REACH[interpolation] * step + 1
    first = max(0, math.floor(top + above * step - reach))
    last = min(image.height, math.ceil(top + (above + height) * step + reach))
    wide = image.crop((0, first, image.width, last)).resize(
        (columns, last - first), resampling, (left, 0, right, last - first)
    )
    wide = wide.crop((start, -first, start + width, image.height - first))  # rows not read are black
    tall = wide.resize((width, rows), resampling, (0, top, width, bottom))
    return tall.crop((0, above, width, above + height))


def _surplus(size: Size, how: Preprocessing) -> float:
    """How many times the pixels a side that are needed a picture of (H, W) ``size`` has."""
    (rows, columns), (left, top, right, bottom) = _plan(size, how)
    return min((bottom - top) / rows, (right - left) / columns)


def _plan(size: Size, how: Preprocessing) -> tuple[Size, Box]:
    """(H, W) that a picture of (H, W) ``size`` is resized to, and the part of it that is."""
    if how.fit == "squash":
        return _enlarged(how), (0, 0, size[1], size[0])
    box = _middle(size[1], size[0])
    return _covering((box[3] - box[1], box[2] - box[0]), how), box


def _enlarged(how: Preprocessing) -> Size:
    """The size, in whole pixels, of which the centre crop takes ``crop_fraction``."""
    # The small number undoes 224 / (224 / 257) = 256.99...
    height, width = (math.floor(pixels / how.crop_fraction + 1e-6) for pixels in how.size)
    return (height, width)


def _covering(source: Size, how: Preprocessing) -> Size:
    """The size, aspect kept, at which a picture of (H, W) ``source`` covers ``size / crop_fraction``.

    Roundings are the libraries': the longer side is cut to whole pixels for a square target
    (torchvision, transformers), both are rounded for another (timm).
    """
    target = _enlarged(how)
    short, long = sorted(source)
    if target[0] == target[1]:
        longer = target[0] * long // short
        return (target[0], longer) if source[0] <= source[1] else (longer, target[0])
    ratio = min(source[0] / target[0], source[1] / target[1])
    return (round(source[0] / ratio), round(source[1] / ratio))


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a picture; of a strip, of its middle ``LONGEST`` times as long as it is wide."""
    limit = LONGEST * min(width, height)
    left, top = max(width - limit, 0) // 2, max(height - limit, 0) // 2
    return (left, top, left + min(width, limit), top + min(height, limit))
