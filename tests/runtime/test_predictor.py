"""What a way of running a model says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from vitrail.config import EncoderConfig, Preprocessing, ViTConfig
from vitrail.data.preprocess import load
from vitrail.model.build import build
from vitrail.runtime.plan import Backend, Precision
from vitrail.runtime.predictor import Predictor
from vitrail.tasks.prediction import embeddings


@dataclass
class Fake:
    """An engine for every machine."""

    precision: Precision
    backend: Backend = "openvino"
    sizes: tuple[int, ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(("precision", "quick"), [("fp32", False), ("bf16", True), ("int8", True)])
def test_pictures_are_resized_quickly_for_engines_that_change_more(
    precision: Precision, quick: bool, tmp_path: Path
) -> None:
    usual = Predictor.of(build(ViTConfig(EncoderConfig(1, 8, 2, 16), (4, 4), (8, 8))), device="cpu")
    assert not usual.quick, "without an engine that was asked for, pixels are Pillow's"
    predictor = usual.by(Fake(precision))
    assert predictor.quick == quick
    how, path = Preprocessing(), tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)).save(path)
    (seen,) = embeddings(predictor, how, [path], 8)
    expected = {given: Fake(precision)(load(path, how, quick=given)[None])[0].numpy() for given in (False, True)}
    assert seen.features is not None
    assert np.array_equal(seen.features, expected[quick])
    assert not np.array_equal(seen.features, expected[not quick])
