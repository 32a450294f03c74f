"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from vitrail.settings import TrainSettings


def steps_of(amount: float, steps: int) -> float:
    """A share of ``steps`` where ``amount`` is below 1, else that many steps."""
    return amount * steps if amount < 1.0 else amount


def rate_share(step: int, settings: TrainSettings) -> float:
    """Share of the highest rate at ``step``, counted from 0: up along a line, then down as the schedule says.

    The inverse square root is that of Vaswani et al. (1706.03762, section 5.3), highest where the rise ends.
    """
    rising = steps_of(settings.warmup, settings.steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "rsqrt":
        return math.sqrt(max(rising, 1.0) / max(step, rising, 1.0))
    done = (step - rising) / max(settings.steps - rising, 1)
    return 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
