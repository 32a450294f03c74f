"""A photo seen another way each time, while it stays a photo of the same thing.

Every choice is drawn from a generator that is handed in, so that what sample i looks like in epoch e
is a function of (seed, e, i). The libraries' versions draw from a global generator, which threads share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from vitrail.config import Preprocessing, Size
from vitrail.data.preprocess import preprocess
from vitrail.settings import Augmentation

_GREY = (124, 116, 104)
"""What comes in from beyond the edge: ImageNet's mean colour."""


def augment(image: Image.Image, how: Preprocessing, policy: Augmentation, chance: np.random.Generator) -> torch.Tensor:
    """RGB picture of any size -> (C, H, W) float32: a random crop, flip, RandAugment and erasing, standardised."""
    image = cropped(image, how.size, policy.smallest_crop, chance)
    if chance.random() < policy.flip:
        image = ImageOps.mirror(image)
    for name in chance.choice(sorted(_OPERATIONS), policy.operations):
        image = _OPERATIONS[name](image, policy.magnitude * float(chance.choice([-1.0, 1.0])))
    pixels = preprocess(image, replace(how, fit="squash", crop_fraction=1.0))
    if chance.random() < policy.erase:
        _erase(pixels, chance)
    return pixels


def cropped(image: Image.Image, size: Size, smallest: float, chance: np.random.Generator) -> Image.Image:
    """A random crop of at least the share ``smallest`` of a picture's area, resized to ``size``."""
    box = _crop(image.width, image.height, size[1] / size[0], smallest, chance)
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box)


def _crop(
    width: int, height: int, aspect: float, smallest: float, chance: np.random.Generator
) -> tuple[float, float, float, float]:
    """A box of a random share of the area and nearly the wanted aspect (Inception's random crop, 1409.4842)."""
    for _ in range(10):
        area = width * height * chance.uniform(smallest, 1.0)
        ratio = aspect * math.exp(chance.uniform(-math.log(4 / 3), math.log(4 / 3)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = chance.uniform(0, width - w), chance.uniform(0, height - h)
            return (left, top, left + w, top + h)
    w, h = min(width, height * aspect), min(height, width / aspect)  # a strip: its middle
    return ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)


def _erase(pixels: torch.Tensor, chance: np.random.Generator) -> None:
    """Random erasing (1708.04896): noise over a rectangle of 2 to 25 % of (C, H, W), in place."""
    _, height, width = pixels.shape
    area, ratio = chance.uniform(0.02, 0.25) * height * width, math.exp(chance.uniform(-1.2, 1.2))
    h, w = min(height, max(1, round(math.sqrt(area * ratio)))), min(width, max(1, round(math.sqrt(area / ratio))))
    top, left = chance.integers(0, height - h + 1), chance.integers(0, width - w + 1)
    noise = chance.standard_normal((pixels.shape[0], h, w), dtype=np.float32)
    pixels[:, top : top + h, left : left + w] = torch.from_numpy(noise)


def _shifted(a: float, b: float, c: float, d: float) -> Callable[[Image.Image, float], Image.Image]:
    """Shear by (a, b) and shift by (c, d) of the size, times the strength."""

    def operation(image: Image.Image, strength: float) -> Image.Image:
        s, (width, height) = strength, image.size
        matrix = (1.0, a * s, c * s * width, b * s, 1.0, d * s * height)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_GREY)

    return operation


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: kind(image).enhance(1.0 + 0.9 * strength)


# RandAugment's operations (1909.13719, section 3) with their ranges; the strength lies in [-1, 1], and those
# without a direction use its size.
_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "solarize": lambda image, strength: ImageOps.solarize(image, 256 - round(256 * abs(strength))),
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "rotate": lambda image, strength: image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=_GREY),
    "shear-x": _shifted(0.3, 0, 0, 0),
    "shear-y": _shifted(0, 0.3, 0, 0),
    "translate-x": _shifted(0, 0, 0.3, 0),
    "translate-y": _shifted(0, 0, 0, 0.3),
}
