"""Which method ``auto`` takes, and why it says so."""

from __future__ import annotations

import pytest

from vitrail.settings import FinetuneSettings
from vitrail.tasks.training import choose_method, usual_epochs


@pytest.mark.parametrize(
    ("photos", "classes", "speed", "method", "words"),
    [
        (50, 10, 1000.0, "probe", "5 photos a class are too few"),
        (2500, 10, 22.0, "probe", "--method full does it"),
        (2500, 10, 150.0, "full", "20 epochs of 2500 photos take about 19.4 min here"),
    ],
)
def test_auto_says_why(photos: int, classes: int, speed: float, method: str, words: str) -> None:
    chosen, why = choose_method(FinetuneSettings("photos"), photos, classes, speed)
    assert chosen == method
    assert words in why


def test_what_is_asked_for_is_done() -> None:
    assert choose_method(FinetuneSettings("photos", method="full"), 50, 10, 1.0)[0] == "full"
    assert choose_method(FinetuneSettings("photos", method="probe"), 5000, 10, 1000.0)[0] == "probe"


def test_few_photos_are_seen_more_often() -> None:
    assert [usual_epochs(photos) for photos in (50, 1000, 2500, 50_000)] == [60, 50, 20, 10]
