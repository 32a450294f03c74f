"""How many tokens each layer merges: families of schedules, and the cheapest one that loses little enough.

Numbers alone: what merging does is in ``merging.py``, and what a schedule loses is asked of whoever has pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from vitrail.config import ViTConfig
from vitrail.cost import merged_flops
from vitrail.errors import UserError

Kind = Literal["constant", "decreasing", "late"]
"""As many in every layer; from most in the first layer linearly down to none after the last (both are
2210.09461's); as many in every layer but the first third."""
KINDS: tuple[Kind, ...] = get_args(Kind)

LEVELS = 32
"""Steps in which the share of merged patches is searched, where nothing else is said."""


def schedule(config: ViTConfig, share: float, kind: Kind = "constant", every: int = 1) -> tuple[int, ...]:
    """How many tokens each layer merges, so that in the end ``share`` of the patches are gone.

    A layer merges at most half of the patches it has (as many as there are pairs); what it could not merge,
    the next ones make up for, and of large shares something may remain undone. With a larger share no layer
    has more tokens.

    Args:
        every: the first of so many layers merges what is due in all of them: a matching takes as long for one pair as
            for all. Of as many patches gone that is the faster way, but pairs are less alike, and more is lost.

    Raises:
        UserError: ``share`` is not between 0 and 1.
    """
    if not 0.0 <= share <= 1.0:
        raise UserError(f"The share of patches to merge must lie between 0 and 1, not {share}.")
    patches, layers = config.grid[0] * config.grid[1], config.encoder.layers
    if kind == "decreasing":
        weights = [layers - layer for layer in range(layers)]
    else:
        weights = [int(kind == "constant" or layer >= layers // 3) for layer in range(layers)]
    merging: list[int] = []
    for layer in range(layers):
        planned = round(share * patches * sum(weights[: layer + every]) / sum(weights))
        gone = sum(merging)
        merging.append(0 if layer % every else min(planned - gone, (patches - gone) // 2))
    return tuple(merging)


@dataclass(frozen=True)
class Trial:
    """A schedule that was tried."""

    merging: tuple[int, ...]
    flops: int
    """Of one image."""
    loss: float
    """What ``evaluate`` said: points of accuracy."""
    kind: Kind | None = None
    """Its family; None: not to merge at all."""


@dataclass(frozen=True)
class Found:
    """What a search found, and everything it tried on the way, in order."""

    best: Trial
    tried: tuple[Trial, ...]


def search(
    config: ViTConfig,
    evaluate: Callable[[tuple[int, ...]], float],
    allowed: float,
    kinds: Iterable[Kind] = KINDS,
    levels: int = LEVELS,
) -> Found:
    """The schedule with the fewest FLOPs that loses at most ``allowed``, by bisection along each family.

    Of a family only schedules cheaper than the best so far are tried, the dearest of them first: a family
    that loses too much there is given up. This takes losses to grow with the share that is merged; where a noisy
    loss does not, what is found may not be the cheapest, but it was evaluated and is within ``allowed``. Without
    any such schedule the best is not to merge at all, which loses nothing and is not evaluated.

    Args:
        evaluate: takes a schedule and gives the points of accuracy lost against no merging; best the upper end of
            an interval, from pairs of predictions on the same images.
        allowed: in the same points.
        levels: steps in which the share of merged patches is searched.
    """
    none = Trial((0,) * config.encoder.layers, merged_flops(config, ()), 0.0)
    best = none
    tried: list[Trial] = []
    for kind in kinds:
        family = [schedule(config, level / levels, kind) for level in range(1, levels + 1)]
        cheaper = [merging for merging in dict.fromkeys(family) if merged_flops(config, merging) < best.flops]
        low, high = 0, len(cheaper)  # those below low are within what is allowed, those from high on are not
        while low < high:
            middle = 0 if low == 0 and best is not none else (low + high) // 2
            merging = cheaper[middle]
            trial = Trial(merging, merged_flops(config, merging), evaluate(merging), kind)
            tried.append(trial)
            if trial.loss <= allowed:
                low, best = middle + 1, min(best, trial, key=lambda one: one.flops)
            else:
                high = middle
    return Found(best, tuple(tried))
