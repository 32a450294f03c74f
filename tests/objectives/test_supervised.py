"""Cross-entropy with mixing: what is said is what is done, and it does not depend on the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vitrail.config import EncoderConfig, HeadConfig, Preprocessing, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.objectives.supervised import Supervised, mixed, partners
from vitrail.settings import Augmentation

CONFIG = ViTConfig(EncoderConfig(2, 24, 3, 48), (8, 8), (16, 16), head=HeadConfig(classes=3))


def chances(count: int, first: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(number) for number in range(first, first + count)]


def model() -> nn.Module:
    torch.manual_seed(0)
    built = build(CONFIG).eval()
    nn.init.normal_(built.classifier.weight)  # type: ignore[union-attr]
    return built


def test_without_mixing_the_loss_is_cross_entropy() -> None:
    views, labels = torch.randn(5, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1])
    objective = Supervised(Preprocessing((16, 16)), Augmentation(mixing=0.0), smoothing=0.1)
    with torch.no_grad():
        blank, _ = objective.loss(build(CONFIG).eval(), views, labels, chances(5))
        loss, metrics = objective.loss(model(), views, labels, chances(5))
        logits = model()(views)
    assert blank == pytest.approx(math.log(3), rel=1e-5), "a zero head says every class is as likely"
    assert loss == pytest.approx(float(F.cross_entropy(logits, labels, label_smoothing=0.1)))
    assert metrics == {"accuracy": pytest.approx(float((logits.argmax(1) == labels).float().mean()))}


@torch.no_grad()
@pytest.mark.parametrize("soft", [False, True])
def test_sigmoids_are_a_loss_a_class_added_up(soft: bool) -> None:
    views, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 2, 1, 0])
    shares = F.one_hot(labels, 3).float()
    objective = Supervised(Preprocessing((16, 16)), Augmentation(mixing=0.0), smoothing=0.3, sigmoid=True)
    loss, _ = objective.loss(model(), views, shares if soft else labels, chances(4))
    said = torch.sigmoid(model()(views).double())
    truth = 0.7 * shares + 0.1
    assert float(loss) == pytest.approx(float(-(truth * said.log() + (1 - truth) * (1 - said).log()).sum(1).mean()))


@torch.no_grad()
def test_mixing_sample_by_sample_gives_the_same() -> None:
    """Against a loop over the samples that mixes two labels into one target."""
    views, labels = torch.randn(9, 3, 16, 16), torch.arange(9) % 3
    objective = Supervised(Preprocessing((16, 16)), Augmentation(mixup=0.8, mixing=0.9), smoothing=0.0)
    pictures, own = mixed(views, objective.policy, chances(9))
    expected = []
    for place in range(9):
        partner = place if place == 8 else place + 1 - 2 * (place % 2)
        target = own[place] * F.one_hot(labels[place], 3) + (1 - own[place]) * F.one_hot(labels[partner], 3)
        expected.append(-(target * model()(pictures[place][None])[0].log_softmax(-1)).sum())
    loss, _ = objective.loss(model(), views, labels, chances(9))
    assert float(loss) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    assert own[8] == 1.0
    assert torch.equal(pictures[8], views[8])
    assert 0 < int((own < 1.0).sum()) < 9


@given(pairs=st.integers(1, 6), cut=st.integers(0, 6), odd=st.booleans())
def test_mixing_does_not_depend_on_the_batch(pairs: int, cut: int, odd: bool) -> None:
    count, cut = 2 * pairs + odd, 2 * min(cut, pairs)
    images = torch.randn(count, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    whole, own = mixed(images, Augmentation(mixing=0.7), chances(count))
    parts = [mixed(images[:cut], Augmentation(mixing=0.7), chances(cut))] if cut else []
    parts += [mixed(images[cut:], Augmentation(mixing=0.7), chances(count - cut, cut))] if cut < count else []
    assert torch.equal(torch.cat([part for part, _ in parts]), whole)
    assert torch.equal(torch.cat([share for _, share in parts]), own)


@pytest.mark.parametrize(
    "policy", [Augmentation(mixup=1.0, cutmix=0.0, mixing=1.0), Augmentation(mixup=0.0, mixing=1.0)]
)
def test_the_share_that_is_said_is_the_share_that_is_there(policy: Augmentation) -> None:
    images = torch.stack([torch.full((3, 20, 30), float(value)) for value in range(40)])
    result, own = mixed(images, policy, chances(40))
    share = own * torch.arange(40.0) + (1 - own) * partners(40)
    assert torch.allclose(result.mean(dim=(1, 2, 3)), share, atol=1e-4)
    assert torch.equal(images[2], torch.full((3, 20, 30), 2.0)), "the originals stay as they are"
    assert len(own.unique()) > 10, "each pair has its own share"


def test_partners_are_neighbours() -> None:
    assert partners(5).tolist() == [1, 0, 3, 2, 4]
    assert partners(1).tolist() == [0]


def test_dropped_patches_are_not_seen() -> None:
    """Each sample's own places are left out: what stands there does not change its logits."""
    dropping = Augmentation(mixup=0.0, cutmix=0.0, drop_patches=0.5)
    objective = Supervised(Preprocessing((16, 16)), dropping, smoothing=0.0)
    views, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    places = torch.stack([torch.from_numpy(np.argsort(chance.random(4), kind="stable")) for chance in chances(4)])
    with torch.no_grad():
        loss, _ = objective.loss(model(), views, labels, chances(4))
        own = F.cross_entropy(model()(views, kept=places[:, :2]), labels)
        hidden = views.unfold(2, 8, 8).unfold(3, 8, 8).clone()  # (B, C, h, w, P, P)
        for sample, dropped in enumerate(places[:, 2:].tolist()):
            for place in dropped:
                hidden[sample, :, place // 2, place % 2] = 7.0
        changed = hidden.permute(0, 1, 2, 4, 3, 5).reshape(4, 3, 16, 16)
        same, _ = objective.loss(model(), changed, labels, chances(4))
        whole, _ = Supervised(objective.how, Augmentation(mixing=0.0), 0.0).loss(model(), views, labels, chances(4))
    assert loss == own == same
    assert loss != whole


def test_patches_are_dropped_of_a_vision_transformer_alone() -> None:
    objective = Supervised(Preprocessing((16, 16)), Augmentation(drop_patches=0.5))
    plain = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(UserError, match="set drop_patches to 0"):
        objective.loss(plain, torch.randn(2, 3, 16, 16), torch.tensor([0, 1]), chances(2))
    with pytest.raises(UserError, match="drop_patches"):
        Augmentation(drop_patches=1.0)


def test_soft_labels_of_one_class_are_hard_ones() -> None:
    """Mixing and smoothing included; and between two classes the loss is between theirs."""
    views, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 1])
    objective = Supervised(Preprocessing((16, 16)), Augmentation(mixing=1.0), smoothing=0.1)
    soft = F.one_hot(labels, 3).float()
    with torch.no_grad():
        hard_loss, hard = objective.loss(model(), views, labels, chances(6))
        soft_loss, told = objective.loss(model(), views, soft, chances(6))
        other_loss, _ = objective.loss(model(), views, soft.roll(1, 1), chances(6))
        between, _ = objective.loss(model(), views, 0.3 * soft + 0.7 * soft.roll(1, 1), chances(6))
    torch.testing.assert_close(soft_loss, hard_loss)
    assert told == hard
    torch.testing.assert_close(between, 0.3 * soft_loss + 0.7 * other_loss)
