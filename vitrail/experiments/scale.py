"""How large an experiment is made: ``small`` for two processor cores, ``medium`` for one accelerator, ``paper``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vitrail.recipes.index import recipe

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
    finetune: Mapping[str, Any] = field(default_factory=dict)
    """What is otherwise for a model that goes on from another; its tuning, where it has any, in place of ``tuning``."""
    masked: Mapping[str, Any] = field(default_factory=dict)
    """What is otherwise where masked patches are learned."""

    @property
    def bare(self) -> dict[str, Any]:
        """``model`` for an objective that its recipe is not for."""
        model = dict(self.model)
        named = model.pop("recipe", None)
        return model if named is None else {"architecture": recipe(named).variant, **model}

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
CROPS = {"smallest_crop": 0.05, "operations": 0, "erase": 0.0, "mixing": 0.0}
"""Views of photos where the paper names none: crop and flip."""
SMALL_PICTURES = {"heads": 3, "patch": 4, "resolution": 32, "position": "learned-1d"}
"""What models of small pictures share; the usual position is said, so that a run has one name in all experiments."""
SCALES: dict[ScaleName, Scale] = {
    "small": Scale({"layers": 4, "width": 96, **SMALL_PICTURES}, 2000, 128, 1e-3, tuning=LIGHT),
    "medium": Scale({"layers": 9, "width": 192, **SMALL_PICTURES}, 40_000, 256, 1e-3, tuning=LIGHT),
    # ViT table 3, ImageNet: 300 epochs of batch 4096; what the recipe says is said again for models that it is not for.
    # Going on: table 4's optimiser, batch and averaging; rates and resolutions are the experiments'. Masked: B.1.2.
    "paper": Scale(
        {"recipe": "vit-b16-imagenet", "resolution": 224},
        93_750,
        4096,
        3e-3,
        tuning={
            "weight_decay": 0.3,
            "warmup": 10_000 / 93_750,
            "betas": [0.9, 0.999],
            "smoothing": 0.0,
            **CROPS,
            "accumulate": 16,
        },
        finetune={
            "batch_size": 512,
            "learning_rate": 0.01,
            "dropout": 0.0,
            "tuning": {
                **{"optimizer": "sgd", "weight_decay": 0.0, "warmup": 0.0, "average": 10_000.0, "smoothing": 0.0},
                **CROPS,
                "accumulate": 2,
            },
        },
        masked={
            **{"recipe": "vit-b16-jft300m-masked-patches", "steps": 1_000_000, "learning_rate": 2e-4},
            "tuning": {"accumulate": 16},
        },
    ),
}
