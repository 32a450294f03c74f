"""The folder of a pretraining run: what was asked and planned, the training, and at the end a model."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from vitrail import __version__
from vitrail.atomic import new_file, new_folder
from vitrail.config import ModelCard
from vitrail.errors import UserError
from vitrail.evaluate.metrics import Evaluation
from vitrail.record import from_dict, to_dict
from vitrail.settings import FREE, PretrainSettings
from vitrail.tasks.pretrain_plan import HIDING, Plan
from vitrail.train.log import METRICS, TIMING
from vitrail.weights.store import is_model, write_model

PACE = 100
"""Steps that a run's pace is the median of."""
CONFIG, TRAINING, MODEL = "config.yaml", "training", "model"


@dataclass(frozen=True)
class Pretrained:
    """What a run gave."""

    folder: Path
    objective: str
    steps: int
    pictures: int
    """How many it was trained on."""
    last: dict[str, Any]
    """The last step's line of ``metrics.jsonl``."""
    evaluation: Evaluation | None = None
    """On held-out pictures, where labels were learned."""
    minutes: float = 0.0
    """Of this process."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        judged = {} if self.evaluation is None else self.evaluation.to_dict()
        return {
            "folder": str(self.folder),
            "objective": self.objective,
            "steps": self.steps,
            "pictures": self.pictures,
            "loss": self.last.get("loss"),
            **judged,
            "minutes": self.minutes,
        }


def write_config(folder: Path, settings: PretrainSettings, plan: Plan) -> None:
    """Make the run folder.

    Raises:
        UserError: the disk is full, or it cannot be written.
    """
    about = {
        "vitrail": __version__,
        "torch": str(torch.__version__),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "pretrain": to_dict(settings),
        "plan": to_dict(plan),
    }
    with new_file(folder / CONFIG) as beside:
        beside.write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), "utf-8")


def read_config(folder: Path) -> tuple[PretrainSettings, Plan]:
    """What ``write_config`` wrote.

    Raises:
        UserError: it is not there, damaged, or of another kind of run.
    """
    path = Path(folder) / CONFIG
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no run to go on with: it has no {CONFIG}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): bring it back, or start another run."
        ) from None
    if not isinstance(content, dict) or not {"pretrain", "plan"} <= content.keys():
        raise UserError(f"{folder} is not a run of vitrail pretrain, so it cannot be gone on with.")
    settings = from_dict(PretrainSettings, content["pretrain"], f"{path}, pretrain")
    return settings, from_dict(Plan, content["plan"], f"{path}, plan")


def is_begun(folder: Path) -> bool:
    """Whether a run was begun there."""
    return (Path(folder) / CONFIG).is_file()


def is_finished(folder: Path) -> bool:
    """Whether its model is there."""
    return is_model(Path(folder) / MODEL)


def compare(folder: Path, begun: PretrainSettings, asked: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings than the run was begun with; those in ``FREE`` may differ.

    Raises:
        UserError: it names the setting.
    """
    for entry in fields(PretrainSettings):
        if entry.name in FREE or entry.name not in asked:
            continue
        before, now = getattr(begun, entry.name), asked[entry.name]
        if _as_kept(before) != _as_kept(now):
            raise UserError(
                f"{folder} was begun with {entry.name} = {_usual(before)}, not {_usual(now)}: go on with the same, or "
                "choose another folder."
            )


def _as_kept(value: Any) -> Any:
    """As JSON gives it back, where a tuple inside is a list."""
    return json.loads(json.dumps(value, default=str))


def _usual(value: Any) -> str:
    return "the usual" if value is None else repr(value)


def last_line(folder: Path) -> dict[str, Any]:
    """The last step's line in ``metrics.jsonl``; empty if there is none."""
    path = folder / TRAINING / METRICS
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    found = (json.loads(line) for line in reversed(lines))
    return next((line for line in found if "loss" in line), {})


def usual_pace(folder: Path) -> float | None:
    """The median seconds of the last steps; None before there is one."""
    path = folder / TRAINING / TIMING
    lines = path.read_text("utf-8").splitlines()[-PACE:] if path.exists() else []
    return statistics.median(json.loads(line)["seconds"] for line in lines) if lines else None


def write_pretrained(
    folder: Path,
    settings: PretrainSettings,
    plan: Plan,
    start: ModelCard | None,
    tensors: Mapping[str, Tensor],
    steps: int,
) -> None:
    """Write the model folder, all of it or nothing.

    Raises:
        UserError: the disk is full, or it cannot be written.
    """
    config = plan.architecture
    if "class" not in config.tokens:
        token = "none"
    elif plan.objective in HIDING or "class" not in config.head.parts:
        token = "took part, but nothing was learned from its output"
    else:
        token = "trained"
    provenance = {
        **({"source": "random weights"} if start is None else start.provenance),
        "pretrained": plan.objective,
        "data": settings.data,
        "pictures": plan.pictures,
        "steps": steps,
        "batch_size": plan.training.batch_size,
        "class_token": token,
        "vitrail": __version__,
    }
    if settings.recipe is not None:
        provenance["recipe"] = settings.recipe
    card = ModelCard(config, plan.preprocessing, plan.classes, provenance)
    with new_folder(folder / MODEL) as beside:
        write_model(beside, card, dict(tensors))
