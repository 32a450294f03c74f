"""Lengths of training as steps, and how what is known is put in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.errors import UserError
from vitrail.recipes.source import Result, Span, Views


@pytest.mark.parametrize(
    ("amount", "images", "batch", "steps"),
    [
        (300, 1_280_000, 4096, 93_750),  # 1.28 M x 300 / 4096, exactly
        (90, 14_000_000, 4096, 307_617),  # ... .19
        (7, 303_000_000, 4096, 517_822),  # ... .27
        (14, 303_000_000, 4096, 1_035_645),  # ... .53, up
        (1, 10, 4, 2),
        (0, 10, 4, 0),
    ],
)
def test_epochs_become_steps(amount: float, images: int, batch: int, steps: int) -> None:
    assert Span(amount, "epochs").steps(images, batch) == steps


@given(st.integers(0, 10**6), st.integers(1, 10**9), st.integers(1, 10**5))
def test_steps_depend_on_neither_data_nor_batch(amount: int, images: int, batch: int) -> None:
    assert Span(amount, "steps").steps(images, batch) == amount


@given(st.integers(0, 1000), st.integers(1, 10**7), st.integers(1, 10**4))
def test_so_many_steps_see_so_many_images(epochs: int, images: int, batch: int) -> None:
    seen = Span(epochs, "epochs").steps(images, batch) * batch
    assert abs(seen - epochs * images) <= batch / 2 * (1 + 1e-9)


@pytest.mark.parametrize("amount", [-1.0, float("nan")])
def test_no_training_is_shorter_than_none(amount: float) -> None:
    with pytest.raises(UserError, match="0 epochs or more"):
        Span(amount, "epochs")


def test_words() -> None:
    assert str(Span(1_000_000, "steps")) == "1,000,000 steps"
    assert str(Span(300, "epochs")) == "300 epochs"
    assert str(Result(99.5, "CIFAR-10", 0.06)) == "99.50 +- 0.06 % on CIFAR-10"
    assert str(Result(79.9, "ImageNet", how="fine-tuned")) == "79.9 % on ImageNet, fine-tuned"
    assert str(Views(0.08, operations=2, magnitude=0.9, erase=0.25)) == (
        "crops of 8 % and more, flips 0.5, RandAugment 2 at 9, erasing 0.25"
    )
