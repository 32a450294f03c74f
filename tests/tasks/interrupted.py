"""A small fine-tuning run to interrupt, and what it must be equal to in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitrail.tasks.finetune import Finetuned

STEPS = 6
HOW: dict[str, Any] = {"method": "full", "epochs": 2, "batch_size": 8, "quiet": True}
TUNING = {"checkpoint_every": 2, "on_spike": "rollback", "accumulate": 2, "evaluate_every": 3}
LEFT = {"config.yaml", "metrics.jsonl", "model", "report.html", "weights.json", "training", "split.csv"}
TABLES = {"predictions.csv", "suspects.csv", "near_duplicates.csv"}


class Killed(BaseException):
    """What SIGKILL is to a test: nothing may be saved because of it."""


def same(one: Path, other: Path) -> None:
    """Weights and everything that is said of them, byte for byte; only times and the page with them may differ."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    names = [*("config.yaml", "weights.json", "split.csv", "metrics.jsonl", "training/metrics.jsonl"), *sorted(TABLES)]
    for name in (*names, "model/model.safetensors", "model/config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def numbers(result: Finetuned) -> dict[str, Any]:
    """A result without its times."""
    return {
        name: value
        for name, value in result.to_dict().items()
        if name not in ("minutes", "images_per_second", "training_images_per_second", "folder")
    }
