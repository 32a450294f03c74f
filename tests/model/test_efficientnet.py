"""EfficientNet against torchvision's own, its published sizes, and what BatchNorm needs that other norms do not."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from torch import Tensor, nn

from vitrail.config import EfficientNetConfig, HeadConfig, architecture, efficientnet
from vitrail.errors import UserError
from vitrail.model.build import blank, build
from vitrail.settings import TrainSettings
from vitrail.train.loop import check_pieces
from vitrail.train.state import State
from vitrail.train.trainable import train_only

TOY = EfficientNetConfig(0.3, 0.3, (33, 40), head=HeadConfig(("mean",), classes=5))


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's tensors under our names."""
    return {
        name.replace("features.", "trunk.").replace("classifier.1.", "classifier."): one for name, one in state.items()
    }


def _lived(module: nn.Module) -> nn.Module:
    """Statistics and scales as if something had been learned."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, least in ((part.running_mean, -0.2), (part.running_var, 0.8), (part.weight.data, 0.8)):
                assert tensor is not None
                tensor.copy_(least + 0.4 * torch.rand(tensor.shape, generator=generator))
    return module


@pytest.mark.parametrize("size", [(64, 64), (45, 70)])
def test_logits_are_torchvisions(size: tuple[int, int]) -> None:
    """Of the whole model in double precision."""
    theirs = _lived(torchvision.models.efficientnet_b0(num_classes=5)).double().eval()
    ours = build(efficientnet("EfficientNet-B0", size, classes=5)).double()
    ours.load_state_dict(_renamed(theirs.state_dict()))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        expected = theirs(images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(images), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "count"), [("B0", 5_288_548), ("B4", 19_341_616), ("B5", 30_389_784), ("B7", 66_347_960)]
)
def test_all_scales_are_torchvisions(scale: str, count: int) -> None:
    """Their published numbers of parameters, every shape, dropout, and BatchNorm's two numbers."""
    with blank():
        ours = build(architecture(f"EfficientNet-{scale}", classes=1000))
        theirs = getattr(torchvision.models, f"efficientnet_{scale.lower()}")()
    assert sum(tensor.numel() for tensor in ours.parameters()) == count
    shapes = {name: tensor.shape for name, tensor in _renamed(theirs.state_dict()).items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    norms = [[(part.eps, part.momentum) for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
             for model in (ours, theirs)]  # fmt: skip
    assert norms[0] == norms[1]
    assert ours.config.dropout == theirs.classifier[0].p  # type: ignore[union-attr]


def test_depth_rises_through_the_blocks() -> None:
    with blank():
        model = build(efficientnet("EfficientNet-B1", classes=3))
    depths = [model.depth(name) for name, _ in model.named_parameters()]
    assert depths == sorted(depths)
    assert sorted(set(depths)) == list(range(model.config.layers + 2))
    assert len(model.blocks()) == model.config.layers == 23


def test_maps_and_features() -> None:
    model = build(TOY)
    images = torch.randn(2, 3, 33, 40)
    assert model.feature_map(images).shape == (2, model.config.width, *model.config.grid)
    assert model.config.grid == (2, 2)
    torch.testing.assert_close(model.features(images), model.feature_map(images).mean((2, 3)))
    assert [tuple(one.shape[2:]) for one in model.stage_maps(images)] == [
        (17, 20), (9, 10), (5, 5), (3, 3), (3, 3), (2, 2), (2, 2)
    ]  # fmt: skip


def test_the_average_has_the_statistics_of_the_last_step() -> None:
    """An averaged weight between the steps' own, and BatchNorm's statistics as training left them."""
    model = build(TOY)
    state = State.start(model, nn.ModuleDict(), TrainSettings(10, average=5.0))
    state.begin()
    model.train()(torch.randn(4, 3, 33, 40) + 3.0).sum().backward()
    state.optimizer.step()
    state.average.update(state.learner, 5)
    averaged = state.averaged()
    assert set(averaged) == set(model.state_dict())
    moved = build(TOY).state_dict()
    for name, tensor in model.state_dict().items():
        if "running" in name or "batches" in name:
            assert torch.equal(averaged[name], tensor)
            assert not torch.equal(averaged[name], moved[name])
    assert not torch.equal(averaged["classifier.bias"], model.state_dict()["classifier.bias"])


def test_layers_that_do_not_learn_stay_as_they_are() -> None:
    """Their statistics too: what they give is what it was."""
    model = build(TOY)
    train_only(model, model.depth, model.config.layers)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()(torch.randn(4, 3, 33, 40) + 3.0)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    parameters = dict(model.named_parameters())
    assert all(model.depth(name) >= model.config.layers for name in changed)
    assert {name.rpartition(".")[0] for name in changed} <= {name.rpartition(".")[0] for name in parameters}


def test_a_batch_is_not_cut_into_pieces() -> None:
    check_pieces(build(TOY), TrainSettings(1))
    check_pieces(build(architecture("R14x0.5", (32, 32))), TrainSettings(1, accumulate=2))
    with pytest.raises(UserError, match="BatchNorm, to which a batch in pieces is other batches"):
        check_pieces(build(TOY), TrainSettings(1, accumulate=2))


def test_noise() -> None:
    """Dropout and stochastic depth: none when predicting, and as much as is asked for when training."""
    images = torch.randn(4, 3, 33, 40)
    model = build(TOY.noisy(0.0, 0.9))
    assert model.classifier is not None
    nn.init.normal_(model.classifier.weight)
    assert torch.equal(model(images), model(images))
    torch.manual_seed(0)
    assert not torch.equal(model.train()(images), model(images))
    assert TOY.noisy(None, None) == TOY


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(UserError, match=r"pip install 'vitrail\[cnn\]'"):
        build(TOY)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: architecture("EfficientNet-B8"), r"no 'EfficientNet-B8'; the nearest is EfficientNet-B"),
        (lambda: EfficientNetConfig(channels=1), "takes 3 channels, not 1"),
        (lambda: EfficientNetConfig(drop_path=1.0), r"drop_path must lie in \[0, 1\)"),
        (lambda: EfficientNetConfig(head=HeadConfig(("class",))), "no tokens to choose from"),
        (lambda: EfficientNetConfig(0.0), "above 0"),
    ],
)
def test_what_there_is_not(make: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()  # type: ignore[operator]
