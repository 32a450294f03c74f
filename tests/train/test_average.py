"""The average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from vitrail.train.average import WeightAverage


def test_the_average_of_what_does_not_change_is_itself_and_a_horizon_of_one_is_the_weights() -> None:
    layer = nn.Linear(3, 3)
    still, current = WeightAverage(layer, 20.0), WeightAverage(layer, 1.0)
    kept = layer.weight.detach().clone()
    for step in range(1, 6):
        still.update(layer, step)
    assert torch.allclose(still.state(layer)["weight"], kept)
    with torch.no_grad():
        layer.weight.add_(1.0)
    current.update(layer, 6)
    still.update(layer, 6)
    assert torch.equal(current.state(layer)["weight"], layer.weight)
    assert current.weights == {}, "nothing is kept for it"
    assert 0.0 < float((still.state(layer)["weight"] - kept).mean()) < 1.0
