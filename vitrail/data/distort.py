"""Two looks at a photo that share what it shows and little else: BYOL's distortions (2006.07733, table 6).

MoCo v3 and DINO use them, each with strengths of its own. Colour is distorted so that crops cannot be matched
by their histograms. As in ``augment``, every choice comes from the generator that is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from vitrail.config import Preprocessing
from vitrail.data.augment import cropped
from vitrail.data.preprocess import preprocess


@dataclass(frozen=True)
class Distortion:
    """How a view may differ from its photo; apart from the crop, chances and largest changes are BYOL's."""

    smallest_crop: float = 0.08
    """Smallest share of a photo's area that a random crop may take."""
    flip: float = 0.5
    jitter: float = 0.8
    """Chance that brightness, contrast, saturation and hue change, in an order of chance."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """Largest shift either way, in turns of the colour circle."""
    grey: float = 0.2
    blur: float = 1.0
    """Chance of a Gaussian blur; its deviation is 0.1 to 2 pixels of 224, and less of smaller views."""
    solarize: float = 0.0
    """Chance that values from 128 up are inverted."""


def distort(image: Image.Image, how: Preprocessing, policy: Distortion, chance: np.random.Generator) -> Tensor:
    """RGB picture of any size -> (C, H, W) float32, standardised."""
    image = cropped(image, how.size, policy.smallest_crop, chance)
    if chance.random() < policy.flip:
        image = ImageOps.mirror(image)
    if chance.random() < policy.jitter:
        image = _jittered(image, policy, chance)
    if chance.random() < policy.grey:
        image = ImageOps.grayscale(image).convert("RGB")
    if chance.random() < policy.blur:
        image = image.filter(ImageFilter.GaussianBlur(chance.uniform(0.1, 2.0) * min(how.size) / 224))
    if chance.random() < policy.solarize:
        image = ImageOps.solarize(image, 128)
    return preprocess(image, replace(how, fit="squash", crop_fraction=1.0))


def _jittered(image: Image.Image, policy: Distortion, chance: np.random.Generator) -> Image.Image:
    changes = (
        (ImageEnhance.Brightness, policy.brightness),
        (ImageEnhance.Contrast, policy.contrast),
        (ImageEnhance.Color, policy.saturation),
        (None, policy.hue),
    )
    for change in chance.permutation(len(changes)):
        kind, most = changes[change]
        amount = chance.uniform(-most, most)
        image = _turned(image, amount) if kind is None else kind(image).enhance(1.0 + amount)
    return image


def _turned(image: Image.Image, turns: float) -> Image.Image:
    """The picture with its hues shifted around the colour circle."""
    if not (levels := round(256 * turns)):
        return image  # there and back would round
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + levels) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
