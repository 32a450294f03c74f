"""How large an experiment is made: ``small`` for two processor cores, ``medium`` for one accelerator, ``paper``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ScaleName = Literal["small", "medium", "paper"]


@dataclass(frozen=True)
class Scale:
    """Settings that an experiment's runs share, and how many seeds each has."""

    model: Mapping[str, Any]
    """Arguments of ``vitrail.pretrain`` that say the model."""
    steps: int
    batch_size: int
    learning_rate: float
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning: Mapping[str, Any] | None = None

    def settings(self) -> dict[str, Any]:
        """For a supervised run."""
        return {
            **self.model,
            "objective": "supervised",
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "tuning": {"evaluate_every": self.steps, "average": 0.0, **(self.tuning or {})},
        }


LIGHT = {"operations": 0, "erase": 0.0, "mixing": 0.0, "smallest_crop": 0.5}
"""Views of small pictures for models that see each a dozen times: crop and flip."""
SMALL_PICTURES = {"heads": 3, "patch": 4, "resolution": 32, "position": "learned-1d"}
"""What models of small pictures share; the usual position is said, so that a run has one name in all experiments."""
SCALES: dict[ScaleName, Scale] = {
    "small": Scale({"layers": 4, "width": 96, **SMALL_PICTURES}, 2000, 128, 1e-3, tuning=LIGHT),
    "medium": Scale({"layers": 9, "width": 192, **SMALL_PICTURES}, 40_000, 256, 1e-3, tuning=LIGHT),
    # ViT table 3, ImageNet: 300 epochs of batch 4096, 3e-3, weight decay 0.3, dropout aside, warm-up of 10,000 steps.
    "paper": Scale(
        {"architecture": "ViT-B/16", "resolution": 224},
        93_750,
        4096,
        3e-3,
        tuning={"weight_decay": 0.3, "warmup": 10_000, "operations": 0, "erase": 0.0, "mixing": 0.0, "accumulate": 16},
    ),
}
