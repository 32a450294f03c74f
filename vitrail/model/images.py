"""What a model may be given."""

from __future__ import annotations

from torch import Tensor

from vitrail.config import Architecture, size_text
from vitrail.errors import UserError


def check_images(images: Tensor, config: Architecture) -> None:
    """Raise UserError unless ``images`` (B, C, H, W) have the channels and the size of the model."""
    if images.shape[1:] != (config.channels, *config.image_size):
        raise UserError(
            f"The model takes {config.channels} channels of {size_text(config.image_size)} pixels, "
            f"not a batch of shape {tuple(images.shape)}: load it with image_size= to change its resolution."
        )
