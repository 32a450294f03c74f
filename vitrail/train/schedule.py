"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the highest rate at ``step`` of ``steps``: linear up over the ``warmup`` share, a cosine down to 0."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
