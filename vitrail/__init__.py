"""Vitrail: Vision Transformers from paper to practice.

config -> model <-> weights; data -> objective -> train; then evaluate, analyze, run, report; tasks
join them, and people call tasks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_TASKS = {
    "Classifier": "vitrail.tasks.classifier",
    "load": "vitrail.tasks.classifier",
    "compare": "vitrail.tasks.compare",
    "few_shot": "vitrail.tasks.few_shot",
    "finetune": "vitrail.tasks.finetune",
    "inspect": "vitrail.tasks.inspection",
    "pretrain": "vitrail.tasks.pretrain",
    "suite": "vitrail.tasks.suite",
    "tune": "vitrail.tasks.tune",
}

__all__ = ["__version__", *_TASKS]

if TYPE_CHECKING:  # by names of their own, which says to a type checker that they are exported
    from vitrail.tasks.classifier import Classifier as Classifier
    from vitrail.tasks.classifier import load as load
    from vitrail.tasks.compare import compare as compare
    from vitrail.tasks.few_shot import few_shot as few_shot
    from vitrail.tasks.finetune import finetune as finetune
    from vitrail.tasks.inspection import inspect as inspect
    from vitrail.tasks.pretrain import pretrain as pretrain
    from vitrail.tasks.suite import suite as suite
    from vitrail.tasks.tune import tune as tune


def __getattr__(name: str) -> Any:
    """Load a task when it is first asked for, so that ``import vitrail`` stays light."""
    if name in _TASKS:
        return getattr(import_module(_TASKS[name]), name)
    raise AttributeError(f"module 'vitrail' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_TASKS])
