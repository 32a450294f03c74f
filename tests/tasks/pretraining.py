"""Small pretraining runs, and what is done to them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import vitrail
from vitrail.data.views import Views
from vitrail.errors import UserError
from vitrail.tasks.pretrain_folder import Pretrained
from vitrail.train import checkpoint

SMALL: dict[str, Any] = {
    "layers": 2,
    "width": 24,
    "heads": 3,
    "patch": 8,
    "resolution": 16,
    "batch_size": 8,
    "steps": 6,
}
NARROW: dict[str, dict[str, Any]] = {
    "dino": {"hidden": 16, "bottleneck": 8, "outputs": 32},
    "moco": {"hidden": 16, "outputs": 8},
}
EVERYTHING: dict[str, Any] = {"accumulate": 2, "average": 0.4, "checkpoint_every": 2, "clip": 0.5, "spike": 5}
ALL_ON = {
    "mae": {**EVERYTHING, "normalised": False, "on_spike": "rollback"},
    "supervised": {
        **EVERYTHING,
        "repeats": 2,
        "sigmoid": True,
        "evaluate_every": 3,
        "patience": 5,
        "erase": 0.5,
        "mixing": 0.8,
        "operations": 1,
    },
}


class Killed(BaseException):
    """What SIGKILL is to a test: nothing may be saved because of it."""


Stop = Callable[[int, type[BaseException]], None]
"""Have training end after a step, in the way of an error; after step 0: never."""


def run(data: Path | str, out: Path, objective: str = "mae", **options: Any) -> Pretrained:
    tuning = options.pop("tuning", NARROW.get(objective, {}))
    found = vitrail.pretrain(data, out, objective=objective, tuning=tuning, quiet=True, **{**SMALL, **options})
    assert found is not None
    return found


def files(folder: Path) -> dict[str, bytes]:
    """What a run gave, without what time it took and what it was asked."""
    names = ["model/model.safetensors", "model/config.json", "training/metrics.jsonl"]
    last = checkpoint.place(folder / "training" / "checkpoints", 6)
    return {name: (folder / name).read_bytes() for name in names} | {"last": (last / checkpoint.TENSORS).read_bytes()}


def sentence(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Dying(Views):
    """Sample 7 is the end."""

    def __call__(self, sample: int, chance: np.random.Generator) -> Tensor:
        """(C, H, W)."""
        if sample == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(sample, chance)
