"""What a way of running a model says of itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import Tensor

from vitrail.config import EncoderConfig, ViTConfig
from vitrail.model.build import build
from vitrail.runtime.plan import Backend, Precision
from vitrail.runtime.predictor import Predictor


@dataclass
class Fake:
    """An engine for every machine."""

    precision: Precision
    backend: Backend = "openvino"
    sizes: tuple[int, ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(("precision", "quick"), [("fp32", False), ("bf16", True), ("int8", True)])
def test_pictures_are_resized_quickly_for_engines_that_change_more(precision: Precision, quick: bool) -> None:
    usual = Predictor.of(build(ViTConfig(EncoderConfig(1, 8, 2, 16), (4, 4), (8, 8))), device="cpu")
    assert not usual.quick, "without an engine that was asked for, pixels are Pillow's"
    assert usual.by(Fake(precision)).quick == quick
