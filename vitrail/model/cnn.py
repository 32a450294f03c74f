"""What all CNNs have in common: the mean over the last feature map, and a classifier on it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vitrail.config import BiTConfig, EfficientNetConfig
from vitrail.errors import UserError
from vitrail.model.heads import NO_CLASSIFIER, Classifier, Pooling
from vitrail.model.images import check_images


class CNN(nn.Module, ABC):
    """Asked in the words of ``VisionTransformer``, as far as they make sense."""

    config: BiTConfig | EfficientNetConfig
    pooling: Pooling
    classifier: Classifier | None

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes).

        Raises:
            UserError: the model has no classifier, or the images are not of its size.
        """
        if self.classifier is None:  # before any work is done
            raise UserError(NO_CLASSIFIER)
        return self.classify(self.features(images))

    def classify(self, features: Tensor) -> Tensor:
        """Features (B, F) -> logits (B, classes).

        Raises:
            UserError: the model has no classifier.
        """
        if self.classifier is None:
            raise UserError(NO_CLASSIFIER)
        logits: Tensor = self.classifier(features)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> what the classifier sees, the mean over the last feature map (B, F).

        Raises:
            UserError: the images are not of the model's size.
        """
        return self.pool(images, self.pooling)

    def pool(self, images: Tensor, pooling: Pooling) -> Tensor:
        """(B, C, H, W) -> the features (B, F) that another pooling would see, of the cells as its tokens.

        Raises:
            UserError: the images are not of the model's size.
        """
        cells = self.feature_map(images).flatten(2).transpose(1, 2)  # (B, h w, F)
        pooled: Tensor = pooling([cells], nn.Identity())
        return pooled

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the last feature map (B, F, h, w), after its nonlinearity.

        Raises:
            UserError: the images are not of the model's size.
        """
        return self.last(self.stage_maps(images)[-1])

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the output of each stage (B, F, h, w), before what ``last`` does.

        Raises:
            UserError: the images are not of the model's size.
        """
        check_images(images, self.config)
        return self.staged(images)

    @abstractmethod
    def staged(self, images: Tensor) -> list[Tensor]:
        """``stage_maps``, of images of any size."""

    @abstractmethod
    def last(self, x: Tensor) -> Tensor:
        """What the last stage gives -> the last feature map."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The L units that ``depth`` counts, in order."""

    @abstractmethod
    def depth(self, parameter: str) -> int:
        """The layer a parameter's name belongs to: 0 before the units, 1 to L the units, L + 1 after them."""


def classifier_of(config: BiTConfig | EfficientNetConfig) -> Classifier | None:
    """A new one, if the configuration has classes."""
    return Classifier(config.feature_width, config.head.classes) if config.head.classes else None
