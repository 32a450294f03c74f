"""The statistics of an inspection that one forward pass a picture gives, and how many pictures it takes at a time."""

from __future__ import annotations

from dataclasses import dataclass

from vitrail.analyze.components import PatchCovariance
from vitrail.analyze.distance import MeanDistance
from vitrail.analyze.entropy import MeanEntropy
from vitrail.analyze.norms import PatchNorms
from vitrail.analyze.similarity import LEAST, MinibatchCKA
from vitrail.analyze.stream import Statistic
from vitrail.config import ViTConfig
from vitrail.model.vision import VisionTransformer

TRACED = 8
"""Images run at a time while attention is looked at, which takes memory when it is explicit. No slower than more."""
WEIGHTS = 2**26
"""Attention weights of a layer that may be held at a time, 256 MiB in float32: with many patches fewer images run."""


def at_a_time(config: ViTConfig) -> int:
    """How many images to run at a time: ``TRACED``, or as few as ``WEIGHTS`` allow, but what CKA needs of a batch."""
    return max(LEAST, min(TRACED, WEIGHTS // (config.encoder.heads * config.sequence**2)))


@dataclass(frozen=True)
class Streamed:
    """The statistics that one forward pass a picture gives, together."""

    distance: MeanDistance
    entropy: MeanEntropy
    similarity: MinibatchCKA
    norms: PatchNorms
    components: PatchCovariance

    @classmethod
    def of(cls, model: VisionTransformer) -> Streamed:
        """Of a model, with nothing seen yet."""
        config = model.config
        return cls(
            MeanDistance(config),
            MeanEntropy(config),
            MinibatchCKA(config),
            PatchNorms(config),
            PatchCovariance(config, norm=model.norm),
        )

    @property
    def statistics(self) -> list[Statistic]:
        """All of them, for ``observe``."""
        return [self.distance, self.entropy, self.similarity, self.norms, self.components]
