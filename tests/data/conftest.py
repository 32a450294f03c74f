"""Fixtures that several tests of data share."""

from __future__ import annotations

import pytest

from tests.data.fake_suites import COUNTS
from vitrail.data import suites


@pytest.fixture
def small_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the fake sets be of the size that was published."""
    monkeypatch.setattr(suites, "CLASSES", suites.CLASSES | {"imagenet": 3, "cifar10": 2, "cifar100": 3})
    monkeypatch.setattr(suites, "LENGTHS", COUNTS)
