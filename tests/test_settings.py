"""Settings that cannot be meant are refused with a sentence."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vitrail.errors import UserError
from vitrail.record import from_dict, to_dict
from vitrail.settings import TrainSettings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0, not nan"),
        ({"betas": (0.9, 1.0)}, "betas must lie in [0, 1)"),
        ({"layer_decay": 0.0}, "layer_decay must lie in (0, 1]"),
        ({"patience": 3}, "set evaluate_every too"),
        ({"on_spike": "rollback"}, "set checkpoint_every too"),
        ({"keep": 0}, "keep must be at least 1"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        TrainSettings(**{"steps": 10, **changes})


def test_settings_are_plain_values_and_back() -> None:
    settings = TrainSettings(10, betas=(0.8, 0.9), clip=None, schedule="rsqrt")
    assert from_dict(TrainSettings, to_dict(settings)) == settings
    with pytest.raises(UserError, match="should be one of 'adamw', 'sgd', not 'lion'"):
        from_dict(TrainSettings, {"steps": 1, "optimizer": "lion"})
