"""The folder a fine-tuning run leaves: what was asked, what came out, and a model that describes itself."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from vitrail import __version__
from vitrail.atomic import new_folder
from vitrail.data.sources import Dataset, write_split
from vitrail.evaluate.metrics import Evaluation
from vitrail.evaluate.probe import Probe
from vitrail.record import to_dict
from vitrail.settings import FinetuneSettings
from vitrail.tasks.findings import Findings, write_findings
from vitrail.tasks.training import Trained
from vitrail.weights.load import Loaded
from vitrail.weights.store import write_model


@dataclass(frozen=True)
class Finetuned:
    """What a run gave."""

    folder: Path
    method: str
    split: str
    """Where the split came from."""
    evaluation: Evaluation
    """On the held-out pictures, confidences at the temperature."""
    unscaled: float
    """Calibration error without the temperature."""
    probe: Probe
    trained: Trained | None
    """None for a probe."""
    findings: Findings
    minutes: float
    images_per_second: float | None
    """Pictures read and run through the model a second for features; None: all were in the cache."""
    unreadable: list[tuple[Path, str]]

    @property
    def trained_on(self) -> int:
        """Number of pictures."""
        return len(self.findings.train)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "folder": str(self.folder),
            "method": self.method,
            **self.evaluation.to_dict(),
            "split": self.split,
            "temperature": self.findings.temperature,
            "calibration_error_unscaled": self.unscaled,
            "trained_on": self.trained_on,
            "suspects": len(self.findings.suspects),
            "twins": len(self.findings.twins),
            "near_duplicates": len(self.findings.pairs),
            "layers": self.probe.layers,
            "parts": list(self.probe.parts),
            "strength": self.probe.strength,
            "minutes": self.minutes,
            "images_per_second": self.images_per_second,
            "epochs": len(self.trained.epochs) if self.trained else None,
            "trained_parameters": self.trained.parameters if self.trained else None,
            "training_images_per_second": self.trained.images_per_second if self.trained else None,
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
        }


def write_run(folder: Path, settings: FinetuneSettings, dataset: Dataset, loaded: Loaded, result: Finetuned) -> None:
    """Write the run folder, all of it or nothing."""
    about: dict[str, Any] = {
        "vitrail": __version__,
        "torch": str(torch.__version__),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "finetune": to_dict(settings),
    }
    if result.trained is not None:
        about |= {"training": to_dict(result.trained.settings), "augmentation": to_dict(result.trained.augmentation)}
    events = [{"event": "candidate", **asdict(candidate)} for candidate in result.probe.cross_validation]
    events += [{"event": "epoch", **line} for line in (result.trained.epochs if result.trained else [])]
    events += [{"event": "unreadable", "path": str(path), "reason": reason} for path, reason in result.unreadable]
    events += [{"event": "note", "text": note} for note in dataset.notes]
    events += [
        {"event": "twin", "train": str(one.path), "held_out": str(other.path)} for one, other in result.findings.twins
    ]
    events += [{"event": "held-out", **result.to_dict()}]
    fates = [{"tensor": fate.tensor, "what": fate.what, "note": fate.note} for fate in loaded.report]
    with new_folder(folder) as beside:
        write_model(beside / "model", loaded.card, loaded.tensors)
        (beside / "config.yaml").write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), "utf-8")
        (beside / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), "utf-8")
        (beside / "weights.json").write_text(json.dumps(fates, indent=1) + "\n", "utf-8")
        write_split(dataset, beside)
        write_findings(beside, result.findings, dataset.classes)
