"""Of the last block only what the head reads is computed, and nothing is another for it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.model.test_vision import TOY, Seen, images_of, trained
from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, PositionKind, ViTConfig
from vitrail.model.encoder import Trace
from vitrail.model.heads import Pooling

READ = {
    "class": (HeadConfig(classes=5), 1),
    "second token": (HeadConfig(("distillation",), classes=5), 2),
    "both tokens": (HeadConfig(("class", "distillation"), classes=5), 2),
    "mean": (HeadConfig(("mean",), classes=5), None),
    "class and mean": (HeadConfig(("class", "mean"), classes=5), None),
    "two layers": (HeadConfig(layers=2, classes=5), None),
    "norm after": (HeadConfig(norm="pooled", classes=5), 1),
}


@pytest.mark.parametrize(("head", "read"), READ.values(), ids=READ)
@pytest.mark.parametrize("kind", get_args(PositionKind))
def test_tokens_that_no_head_reads_make_no_difference(
    head: HeadConfig, read: int | None, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = EncoderConfig(layers=3, width=24, heads=3, mlp_width=32)
    config = ViTConfig(
        encoder, (4, 4), (12, 20), tokens=("class", "distillation"), head=head, position=PositionConfig(kind)
    )
    model, images = trained(config), images_of(config)
    assert model.pooling.read == read
    found = []
    for least in (True, False):
        if not least:
            monkeypatch.setattr(Pooling, "read", None)
        model.zero_grad()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            logits = model(images)
        logits.pow(2).sum().backward()
        gradients = [torch.zeros(1) if one.grad is None else one.grad for one in model.parameters()]
        found.append((logits, gradients, counter.get_total_flops()))
    (ours, own, less), (whole, all_of_them, more) = found
    torch.testing.assert_close(ours, whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(own, all_of_them, rtol=1e-9, atol=1e-9)
    assert (less < more) == (read is not None)
    if read is not None and kind == "learned-1d":
        N, D = config.sequence, 24
        attention = 2 * (N - read) * N * D  # logits and what they weigh, all heads
        dense = (N - read) * (D * D + 2 * D * 32)
        assert more - less == 2 * len(images) * (attention + dense)


def test_a_last_block_that_is_looked_at_is_whole() -> None:
    model, images, seen = trained(TOY), images_of(TOY), Seen()
    features = model.features(images, Trace(seen, attention=[2], blocks=[2]))
    assert seen.values["attention", 2].shape == (2, 3, TOY.sequence, TOY.sequence)
    assert seen.values["block", 2].shape == (2, TOY.sequence, 24)
    torch.testing.assert_close(features, model.features(images), rtol=0, atol=1e-12)
