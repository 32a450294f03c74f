"""Features of ``imagenette-subset`` through the cache that ``vitrail finetune`` uses, for what comes after."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrail.cache import cache_dir
from vitrail.config import HeadConfig, Part
from vitrail.data.sources import Sample, open_dataset
from vitrail.tasks.classifier import load
from vitrail.tasks.features import FeatureCache, cache_folder, content_hashes, extract

WEIGHTS = "saliency-s14"
PARTS: tuple[Part, ...] = ("class", "mean")
LAYERS = 4


@dataclass(frozen=True)
class Labelled:
    """One part of the data: n photos."""

    paths: list[Path]
    features: np.ndarray
    """(n, L, P, D)"""
    labels: np.ndarray
    """(n,)"""


def imagenette(resolution: int) -> tuple[Labelled, Labelled]:
    """Its training and its held-out photos, read from the folder ``VITRAIL_DATA`` names."""
    data = Path(os.environ.get("VITRAIL_DATA", "")) / "imagenette-subset"
    if not (data / "train").is_dir():
        sys.exit("Set VITRAIL_DATA to the folder that holds imagenette-subset/{train,val}.")
    dataset = open_dataset(data, 0.2, 0)
    classifier = load(WEIGHTS, resolution, classes=(), resampling="bicubic-corner")
    how, norm = classifier.card.preprocessing, classifier.card.architecture.head.norm
    pooling = HeadConfig(PARTS, LAYERS, norm)
    cache = FeatureCache(cache_folder(cache_dir() / "features", classifier.predictor, how, pooling))

    def part(samples: Sequence[Sample]) -> Labelled:
        paths = [sample.path for sample in samples]
        found = extract(
            classifier.predictor, how, paths, content_hashes(paths), cache, pooling, 32, lambda done, total: None
        )
        if found.failures:
            sys.exit(f"{len(found.failures)} photos of {data} cannot be read: unpack it again.")
        return Labelled(paths, found.features, np.array([sample.label for sample in samples]))

    return part(dataset.train), part(dataset.val)
