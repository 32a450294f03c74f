"""A model that sees some of the patches, against one that sees all and may not attend to the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.config import ABSOLUTE, EncoderConfig, HeadConfig, PositionConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.position import Position, Relation
from vitrail.model.visible import picked

TOY = ViTConfig(EncoderConfig(3, 32, 4, 48), (4, 8), (12, 32), head=HeadConfig(("mean",)))
KEPT = torch.tensor([[1, 4, 11], [0, 9, 2], [5, 6, 7]])
SCHEMES = [
    PositionConfig("none"),
    PositionConfig("rope-2d"),
    *(PositionConfig(kind, place=place) for kind in ABSOLUTE for place in ("stem", "every-layer", "shared")),
]


class Blinkered(Position):
    """A scheme whose keys count for nothing where they are not ``kept``."""

    def __init__(self, scheme: Position, tokens: int) -> None:
        super().__init__()
        self.scheme, self.tokens = scheme, tokens

    def add(self, x: Tensor, layer: int) -> Tensor:
        return self.scheme.add(x, layer)

    def relation(self, layer: int) -> Relation:
        return Blinkers(self.scheme.relation(layer), self.tokens)


class Blinkers(Relation):
    """Minus infinity at the keys of the others."""

    biased = True

    def __init__(self, own: Relation | None, tokens: int) -> None:
        super().__init__()
        self.own, self.tokens = own, tokens

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (q, k) if self.own is None else self.own.rotate(q, k)

    def bias(self, q: Tensor, queries: slice) -> Tensor:
        bias = torch.full((len(KEPT), self.tokens + 12), -torch.inf, dtype=q.dtype)
        bias[:, : self.tokens] = 0.0
        bias.scatter_(1, KEPT + self.tokens, 0.0)
        return bias[:, None, None].expand(*q.shape[:3], -1)


@pytest.mark.parametrize("tokens", [(), ("class",), ("class", "distillation", "register")], ids=len)
@pytest.mark.parametrize("position", SCHEMES, ids=lambda position: f"{position.kind} {position.place}")
def test_leaving_patches_out_is_not_attending_to_them(position: PositionConfig, tokens: Any) -> None:
    model = build(replace(TOY, position=position, tokens=tokens)).double()
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        tensor.data = 0.3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    images = torch.randn(3, 3, 12, 32, generator=generator, dtype=torch.float64)
    x = model.embed(images)
    few = model.transform(x, last=2, kept=KEPT)
    whole = torch.cat([model.tokens.expand(3, -1, -1), x], dim=1)
    expected = model.encoder(whole, Blinkered(model.position, len(tokens)), last=2)
    for got, all_of_them in zip(few, expected, strict=True):
        patches = picked(all_of_them[:, len(tokens) :], KEPT)
        torch.testing.assert_close(got, torch.cat([all_of_them[:, : len(tokens)], patches], dim=1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("position", SCHEMES, ids=lambda position: f"{position.kind} {position.place}")
def test_keeping_all_is_leaving_none_out(position: PositionConfig) -> None:
    model = build(replace(TOY, position=position))
    images = torch.randn(2, 3, 12, 32, generator=torch.Generator().manual_seed(0))
    everything = torch.arange(12).expand(2, -1)
    kept = model.transform(model.embed(images), kept=everything)[0]
    torch.testing.assert_close(kept, model.encode(images)[0], rtol=1e-5, atol=1e-5)


def test_embedding_and_transforming_is_encoding() -> None:
    model = build(TOY)
    images = torch.randn(2, 3, 12, 32)
    assert model.embed(images).shape == (2, 12, 32)
    assert torch.equal(model.transform(model.embed(images))[0], model.encode(images)[0])


@pytest.mark.parametrize("kind", ["relative-1d", "relative-2d"])
def test_relative_positions_are_refused(kind: Any) -> None:
    model = build(replace(TOY, position=PositionConfig(kind)))
    with pytest.raises(UserError, match=r"^Relative positions need all patches of an image: choose"):
        model.transform(torch.randn(3, 12, 32), kept=KEPT)


def test_picked() -> None:
    x = torch.arange(24).reshape(2, 4, 3)
    places = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([x[sample, own] for sample, own in enumerate(places)])
    assert torch.equal(picked(x, places), expected)
