"""What a way of running a model says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.serve.serving import CLASSES, serving, toy
from vitrail.data.preprocess import load
from vitrail.runtime.plan import Backend, Precision
from vitrail.tasks.classifier import Classifier


@dataclass
class Fake:
    """An engine for every machine, which keeps what it is given."""

    precision: Precision
    backend: Backend = "openvino"
    sizes: tuple[int, ...] = ()
    given: list[Tensor] = field(default_factory=list)

    def __call__(self, images: Tensor) -> Tensor:
        self.given.append(images.clone())
        return torch.zeros(len(images), 192)


def served(classifier: Classifier, picture: Path) -> None:
    with serving(classifier) as server:
        assert server.ask("POST", "/predict", picture.read_bytes()).status == 200


WAYS: dict[str, Callable[[Classifier, Path], object]] = {
    "predict": lambda classifier, picture: classifier.predict([picture]),
    "embed": lambda classifier, picture: classifier.embed([picture]),
    "evaluate": lambda classifier, picture: classifier.evaluate(picture.parents[1]),
    "serve": served,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("precision", "quick"), [("fp32", False), ("bf16", True), ("int8", True)])
def test_pictures_are_resized_quickly_for_engines_that_change_more(
    precision: Precision, quick: bool, way: str, tmp_path: Path
) -> None:
    classifier, engine = toy(), Fake(precision)
    assert not classifier.predictor.quick, "without an engine that was asked for, pixels are Pillow's"
    classifier.predictor = classifier.predictor.by(engine)
    assert classifier.predictor.quick == quick
    for name in CLASSES:
        (tmp_path / name).mkdir()
    path = tmp_path / CLASSES[1] / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)).save(path)
    WAYS[way](classifier, path)
    (seen,) = engine.given[-1]
    expected = {given: load(path, classifier.card.preprocessing, quick=given) for given in (False, True)}
    assert torch.equal(seen, expected[quick])
    assert not torch.equal(seen, expected[not quick])
