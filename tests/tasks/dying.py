"""Views whose process is killed, as for want of memory."""

from __future__ import annotations

import os
import signal

import numpy as np
from torch import Tensor

from vitrail.data.views import Views


class Dying(Views):
    """Sample 7 is the end."""

    def __call__(self, sample: int, chance: np.random.Generator) -> Tensor:
        """(C, H, W)."""
        if sample == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(sample, chance)
