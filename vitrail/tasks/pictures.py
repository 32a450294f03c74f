"""The pictures a model is looked into with: files, or images that are tensors already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Size, size_text
from vitrail.data.batches import batches
from vitrail.data.preprocess import load, resized
from vitrail.data.read import UnreadableImage
from vitrail.data.sources import find_images
from vitrail.errors import UserError
from vitrail.model.cnn import CNN
from vitrail.model.vision import VisionTransformer

SIDE = 224
"""Pixels of the longer side of a picture for people."""


@dataclass(frozen=True)
class Shown:
    """One picture, as the model is given it and as people are."""

    name: str
    image: Tensor
    """(C, H, W), preprocessed."""
    picture: Image.Image


class Pictures:
    """Images in the form a model takes them, from wherever they are.

    Attributes:
        unreadable: files that could not be read, and why, as far as they have been tried.
    """

    def __init__(self, source: Sequence[str | Path] | Tensor, how: Preprocessing, limit: int | None = None) -> None:
        """``limit``: of more pictures than that, so many evenly spaced ones are taken.

        Raises:
            UserError: the limit is below 1, there is no such file, or the tensor is none of images.
        """
        if limit is not None and limit < 1:
            raise UserError(f"At least 1 picture must be looked at, not {limit}: give another limit, or None for all.")
        if isinstance(source, Tensor) and (source.ndim != 4 or not source.is_floating_point()):
            raise UserError(
                f"Images as a tensor are preprocessed floating-point numbers (B, C, H, W), not {source.dtype} of shape "
                f"{tuple(source.shape)}: name their files instead, or preprocess them."
            )
        self.how = how
        self.unreadable: dict[Path, str] = {}
        self.tensor = source if isinstance(source, Tensor) else None
        paths = [] if isinstance(source, Tensor) else find_images(source)
        count = len(paths) if self.tensor is None else len(self.tensor)
        step = max(1.0, count / limit) if limit else 1.0
        chosen = [int(number * step) for number in range(min(count, limit or count))]
        self.paths = [paths[index] for index in chosen] if paths else []
        self._names = Counter(path.name for path in self.paths)
        if self.tensor is not None:
            self.tensor = self.tensor[chosen]

    def __len__(self) -> int:
        return len(self.paths) if self.tensor is None else len(self.tensor)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Preprocessed images (B, C, H, W), ``size`` at a time; unreadable files are noted and passed over.

        Raises:
            UserError: at the end, if no file could be read.
        """
        if self.tensor is not None:
            yield from torch.split(self.tensor, size)
            return
        seen = 0
        for batch in batches(self.paths, self.how, size):
            self.unreadable |= {batch.paths[at - batch.start]: reason for at, reason in batch.failures}
            seen += len(batch.index)
            if batch.index:
                yield batch.images
        if not seen:
            raise self._none_readable()

    def first(self, count: int, larger: int = 0) -> Tensor:
        """Up to ``count`` readable images spread over all, (B, C, H + larger, W + larger).

        Raises:
            UserError: none can be read.
        """
        height, width = self.how.size
        size: Size = (height + larger, width + larger)
        if self.tensor is not None:
            images = self.tensor[:: max(1, len(self) // count)][:count]
            return F.interpolate(images, size, mode="bicubic") if larger else images
        return torch.stack([image for _, image in self._readable(count, self.how.at(size))])

    def shown(self, count: int) -> list[Shown]:
        """Up to ``count`` readable ones spread over all, for people to look at.

        Raises:
            UserError: none can be read.
        """
        if self.tensor is not None:
            spread = range(0, len(self), max(1, len(self) // count))[:count]
            return [Shown(f"image {at}", self.tensor[at], self._as_picture(self.tensor[at])) for at in spread]
        return [
            Shown(self._name(path), image, as_shown(path, self.how)) for path, image in self._readable(count, self.how)
        ]

    def _name(self, path: Path) -> str:
        """The file's, with its folder's where another picture is called the same."""
        twins = self._names[path.name] > 1
        return f"{path.parent.name}/{path.name}" if twins else path.name

    def _readable(self, count: int, how: Preprocessing) -> list[tuple[Path, Tensor]]:
        """Evenly spaced files, preprocessed (C, H, W); the next one in the place of each that cannot be read."""
        found: list[tuple[Path, Tensor]] = []
        order = np.arange(len(self.paths))
        spread = np.linspace(0, len(self.paths) - 1, min(count, len(self.paths))).round().astype(int)
        for index in [*spread.tolist(), *np.setdiff1d(order, spread).tolist()]:
            if len(found) == count:
                break
            try:
                found.append((self.paths[index], load(self.paths[index], how)))
            except UnreadableImage as error:
                self.unreadable[self.paths[index]] = error.reason
        if not found:
            raise self._none_readable()
        return found

    def _none_readable(self) -> UserError:
        path, reason = next(iter(self.unreadable.items()))
        if len(self.unreadable) == 1:
            return UserError(f"{path} cannot be read ({reason}): name another picture.")
        return UserError(f"None of the {len(self.unreadable)} pictures can be read, such as {path} ({reason}).")

    def _as_picture(self, image: Tensor) -> Image.Image:
        return _picture(image.cpu().numpy(), self.how)


def as_shown(path: str | Path, how: Preprocessing) -> Image.Image:
    """What preprocessing keeps of a picture, at a size for people: the same crop at another resolution.

    Raises:
        UnreadableImage: the file gives no picture.
    """
    factor = SIDE / max(how.size)
    return resized(path, how.at((max(1, round(how.size[0] * factor)), max(1, round(how.size[1] * factor)))))


def _picture(pixels: np.ndarray, how: Preprocessing) -> Image.Image:
    """(C, H, W), standardised -> a picture again: grey of one or two channels, the first three of more."""
    values = (pixels.transpose(1, 2, 0) * how.std + how.mean) * 255 + 0.5  # (H, W, C)
    values = values[..., :3] if values.shape[2] >= 3 else np.repeat(values[..., :1], 3, axis=2)  # (H, W, 3)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def fed(module: nn.Module, images: object, preprocessing: Preprocessing | None, size: Size | None) -> Preprocessing:
    """What a bare module is fed: a tensor says its size and channels itself, files are made what is asked for.

    Raises:
        UserError: two of these contradict each other.
    """
    channels = 3
    if isinstance(images, Tensor) and images.ndim == 4:
        channels, given = images.shape[1], (images.shape[2], images.shape[3])
        if size not in (None, given):
            raise UserError(f"The images are tensors of {size_text(given)} pixels already: leave the resolution out.")
        size = given
    if isinstance(module, (VisionTransformer, CNN)):
        channels, size = module.config.channels, size or module.config.image_size
    if preprocessing is None:
        usual = channels == len(IMAGENET_MEAN)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if usual else ((0.5,) * channels, (0.5,) * channels)
        preprocessing = Preprocessing(mean=mean, std=std)
    elif len(preprocessing.mean) != channels:
        raise UserError(f"The preprocessing has {len(preprocessing.mean)} channels where there are {channels}.")
    return preprocessing if size is None else preprocessing.at(size)
