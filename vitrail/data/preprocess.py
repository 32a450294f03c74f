"""From a decoded picture to the tensor a model was trained on."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from vitrail.config import Preprocessing, Size

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

LONGEST = 16
"""A strip longer than this many times its width is cut to it first: enlarged whole, it could fill the memory."""


def preprocess(image: Image.Image, how: Preprocessing) -> torch.Tensor:
    """RGB picture of any size -> (C, H, W) float32, resized by Pillow (antialiased) and standardised.

    Equal, pixel for pixel, to transformers' Pillow-backed processors and, where those agree with it,
    to timm's evaluation transform. They differ in the centre crop when an odd number of pixels is to
    go: transformers rounds the offset down, which is done here; timm rounds it to the even neighbour.
    """
    resampling = _RESAMPLING[how.interpolation]
    height, width = how.size
    if how.fit == "squash":
        rows, columns = _enlarged(how)
        image = image.resize((columns, rows), resampling)
    else:
        box = _middle(image.width, image.height)
        rows, columns = _covering((box[3] - box[1], box[2] - box[0]), how)
        image = image.resize((columns, rows), resampling, box)
    top, left = (rows - height) // 2, (columns - width) // 2
    image = image.crop((left, top, left + width, top + height))
    # NumPy, not torch, does the arithmetic: this runs in reading threads, where torch would start
    # a team of its own threads for each.
    pixels = np.array(image, dtype=np.float32)
    pixels /= 255
    pixels -= np.array(how.mean, dtype=np.float32)
    pixels /= np.array(how.std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


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
