"""Which patches are corrupted and how, whose colour is asked for, and what the loss looks at."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom
from torch.nn import functional as F

from vitrail.config import IMAGENET_MEAN, IMAGENET_STD, EncoderConfig, Preprocessing, ResNetConfig, ViTConfig
from vitrail.data.preprocess import preprocess
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.objectives import masked_patches as module
from vitrail.objectives.masked_patches import MaskedPatches, colours, corruption

HOW = Preprocessing((12, 32), "squash", 1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD)
ENCODER = EncoderConfig(2, 32, 4, 64)


@pytest.mark.parametrize(("patches", "count"), [(2, 1), (3, 2), (5, 2), (12, 6), (13, 6), (196, 98)])
def test_half_of_the_patches_are_corrupted_each_once(patches: int, count: int, chances: Any) -> None:
    places, sources = corruption(chances(range(20)), patches)
    assert places.shape == sources.shape == (20, count)
    assert all(len(set(own.tolist())) == count for own in places)
    assert 0 <= int(places.min()) <= int(places.max()) < patches
    assert -1 <= int(sources.min()) <= int(sources.max()) < patches


def test_how_they_are_corrupted(chances: Any) -> None:
    """80 %, 10 % and 10 %, and each place as often as any, within bounds crossed once in 10,000 times."""
    samples, patches = 2_000, 12
    places, sources = corruption(chances(range(samples)), patches)
    total = places.numel()
    counts = [int((sources == -1).sum()), int((sources == places).sum())]
    counts.append(total - sum(counts))
    for count, share in zip(counts, (0.8, 0.1, 0.1), strict=True):
        low, high = binom.interval(1 - 1e-4, total, share)
        assert low <= count <= high
    low, high = binom.interval(1 - 1e-5, samples, 0.5)
    assert all(low <= count <= high for count in places.flatten().bincount(minlength=patches).tolist())
    steps = (sources - places)[(sources != -1) & (sources != places)] % patches  # to the other patch
    low, high = binom.interval(1 - 1e-5, len(steps), 1 / (patches - 1))
    assert all(low <= count <= high for count in steps.bincount(minlength=patches)[1:].tolist())


def test_colours_are_those_of_a_count_by_hand() -> None:
    chance = np.random.default_rng(0)
    pictures = chance.integers(0, 256, (40, 12, 32, 3), dtype=np.uint8)
    for picture in pictures[20:]:  # means that lie on the edge of a level: sums of 32 values of k * 255 * 32 / 8
        for top, left, channel in itertools.product(range(0, 12, 4), range(0, 32, 8), range(3)):
            whole, rest = divmod(1020 * int(chance.integers(1, 8)), 32)
            cell = chance.permutation([whole] * (32 - rest) + [whole + 1] * rest)
            picture[top : top + 4, left : left + 8, channel] = cell.reshape(4, 8)
    pictures[0, :4], pictures[0, 4:8] = 255, 0
    views = torch.stack([preprocess(Image.fromarray(picture), HOW) for picture in pictures])
    found = colours(views, HOW, (4, 8))
    assert found.shape == (40, 12)
    for picture, classes in zip(pictures, found.tolist(), strict=True):
        for patch, colour in enumerate(classes):
            row, column = divmod(patch, 4)
            cells = picture[row * 4 : row * 4 + 4, column * 8 : column * 8 + 8].astype(int)
            # Level k begins at a mean of k / 8 of 255, in whole numbers.
            red, green, blue = (min(int(cells[..., i].sum()) * 8 // (255 * 32), 7) for i in range(3))
            assert colour == red * 64 + green * 8 + blue
    assert found[0, :8].tolist() == [511] * 4 + [0] * 4


def test_the_loss_is_that_of_a_loop(toy: ViTConfig, chances: Any, randomised: Any) -> None:
    """Embeddings replaced one by one before the positions are added; cross-entropy of each corrupted patch."""
    model = build(replace(toy, tokens=("class", "register")))
    objective = MaskedPatches(model.config, HOW)
    randomised(model, objective.modules)
    views = torch.rand(3, 3, 12, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss, metrics = objective.loss(model, views, torch.zeros(3), chances(range(3)))
        truth = colours(views, HOW, (4, 8))
        losses, right = [], []
        for places, sources, image, classes in zip(*corruption(chances(range(3)), 12), views, truth, strict=True):
            whole = model.embed(image[None])[0]
            x = whole.clone()
            for place, source in zip(places.tolist(), sources.tolist(), strict=True):
                x[place] = objective.guess.mask if source < 0 else whole[source]
            z = model.norm(model.transform(x[None])[0])[0, 2:]
            for place in places.tolist():
                logits = objective.guess.head(z[place])
                losses.append(float(F.cross_entropy(logits, classes[place])))
                right.append(float(logits.argmax() == classes[place]))
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics == {"accuracy": pytest.approx(np.mean(right))}


def test_only_corrupted_patches_count(toy: ViTConfig, chances: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(toy)
    objective = MaskedPatches(toy, HOW)
    views, labels = torch.rand(2, 3, 12, 32), torch.zeros(2)
    places, _ = corruption(chances(range(2)), 12)
    corrupted = torch.zeros(2, 12, dtype=torch.bool).scatter(1, places, True)
    right, _ = objective.loss(model, views, labels, chances(range(2)))
    for wrong, same in ((~corrupted, True), (corrupted, False)):

        def planted(*arguments: Any, wrong: torch.Tensor = wrong) -> torch.Tensor:
            return torch.where(wrong, (colours(*arguments) + 1) % 512, colours(*arguments))

        monkeypatch.setattr(module, "colours", planted)
        loss, _ = objective.loss(model, views, labels, chances(range(2)))
        assert torch.equal(loss, right) is same


def test_the_mask_and_the_model_learn(toy: ViTConfig, chances: Any, randomised: Any) -> None:
    model = build(toy)
    objective = MaskedPatches(toy, HOW)
    randomised(objective.modules)
    objective.loss(model, torch.rand(2, 3, 12, 32), torch.zeros(2), chances(range(2)))[0].backward()
    assert objective.guess.mask.grad.abs().min() > 0
    assert {name for name, p in model.named_parameters() if p.grad is None} == set()


def test_one_channel_has_eight_colours(toy: ViTConfig) -> None:
    objective = MaskedPatches(replace(toy, channels=1), Preprocessing((12, 32), mean=(0.5,), std=(0.5,)))
    assert objective.guess.head.out_features == 8
    assert colours(torch.linspace(-1, 1, 8).reshape(1, 1, 1, 8), objective.how, (1, 1)).max() == 7


def test_models_it_cannot_train() -> None:
    hybrid = ViTConfig(ENCODER, (1, 1), (32, 64), stem=ResNetConfig((1, 1), 32))
    with pytest.raises(UserError, match=r"^A hybrid's ResNet sees into the patches that are to be hidden"):
        MaskedPatches(hybrid, HOW)
    with pytest.raises(UserError, match=r"^There is one patch, so none can be guessed from others"):
        MaskedPatches(ViTConfig(ENCODER, (8, 8), (8, 8)), HOW)
