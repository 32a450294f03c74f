"""Whether a step is still learning: the loss and the gradient are numbers, and the loss is not lost."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from vitrail.settings import TrainSettings

WINDOW = 64
"""Losses that the running median is of."""
ENOUGH = 16
"""Losses below which there is no median to speak of."""
IN_A_ROW = 5
"""Steps that must be beyond it: one bad batch is no reason to stop."""
MOST_ROLLBACKS = 3
"""How often a run may go back; then the rate was not the reason."""


@dataclass
class Guard:
    """What the run has seen of its losses; part of a checkpoint, since decisions follow from it."""

    losses: list[float] = field(default_factory=list)
    """The last ones that were as they should be."""
    suspect: int = 0
    """Steps in a row whose loss was not."""

    def cause(self, loss: float, norm: float, settings: TrainSettings) -> str:
        """Why a step must not be taken, as a clause; empty if it may. Changes nothing."""
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm became {norm}"
        if self._beyond(loss, settings) and self.suspect + 1 >= IN_A_ROW:
            median = statistics.median(self.losses)
            return f"the loss has been beyond {settings.spike:g} times its usual {median:.3g} for {IN_A_ROW} steps"
        return ""

    def accept(self, loss: float, settings: TrainSettings) -> None:
        """Take in the loss of a step that was taken."""
        if self._beyond(loss, settings):
            self.suspect += 1
        else:
            self.suspect = 0
            self.losses = [*self.losses, loss][-WINDOW:]

    def _beyond(self, loss: float, settings: TrainSettings) -> bool:
        known = settings.spike > 0 and len(self.losses) >= ENOUGH
        return known and loss > settings.spike * statistics.median(self.losses) > 0
