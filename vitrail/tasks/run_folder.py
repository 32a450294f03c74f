"""The folder a fine-tuning run leaves: what was asked, what came out, and a model that describes itself."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vitrail import __version__
from vitrail.data.sources import Dataset, write_split
from vitrail.evaluate.knn import Neighbours
from vitrail.evaluate.metrics import Evaluation, evaluate_logits
from vitrail.evaluate.probe import Probe
from vitrail.record import to_dict
from vitrail.settings import FinetuneSettings
from vitrail.tasks.findings import Findings, write_findings
from vitrail.tasks.fitting import Trained
from vitrail.tasks.training import Course
from vitrail.weights.adapter import write_adapter
from vitrail.weights.load import Loaded
from vitrail.weights.report import LoadReport
from vitrail.weights.store import write_model

TIMES = ("minutes", "images_per_second", "training_images_per_second")
"""Results that are never the same twice."""


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
    probe: Probe | None
    """None for kNN."""
    neighbours: Neighbours | None
    """For kNN alone."""
    trained: Trained | None
    """None for a probe and for kNN."""
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
            "layers": self.probe.layers if self.probe else None,
            "parts": list(self.probe.parts) if self.probe else None,
            "strength": self.probe.strength if self.probe else None,
            "neighbours": self.neighbours.k if self.neighbours else None,
            "minutes": self.minutes,
            "images_per_second": self.images_per_second,
            "epochs": len(self.trained.epochs) if self.trained else None,
            "trained_parameters": self.trained.parameters if self.trained else None,
            "training_images_per_second": self.trained.images_per_second if self.trained else None,
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
        }


def judged(folder: Path, classes: tuple[str, ...], found: Findings) -> Finetuned:
    """How the held-out photos fared; who did it and how is for the caller to fill in."""
    labels = [sample.label for sample in found.val]
    return Finetuned(
        folder=folder,
        method="",
        split="",
        evaluation=evaluate_logits(found.logits, np.array(labels), classes, found.temperature),
        unscaled=evaluate_logits(found.logits, np.array(labels), classes).calibration_error,
        probe=None,
        neighbours=None,
        trained=None,
        findings=found,
        minutes=0.0,
        images_per_second=None,
        unreadable=[],
    )


def write_asked(
    folder: Path, settings: FinetuneSettings, dataset: Dataset, report: LoadReport, course: Course | None
) -> None:
    """Write what is known before training: ``config.yaml``, ``split.csv`` and ``weights.json``.

    Args:
        folder: the caller's to make atomic.
        course: of a method that trains the model.
    """
    about: dict[str, Any] = {
        "vitrail": __version__,
        "torch": str(torch.__version__),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "finetune": to_dict(settings),
    }
    if course is not None:
        about |= {"training": to_dict(course.settings), "augmentation": to_dict(course.augmentation)}
        about |= {} if course.lora is None else {"lora": to_dict(course.lora)}
    (folder / "config.yaml").write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), "utf-8")
    fates = [{"tensor": fate.tensor, "what": fate.what, "note": fate.note} for fate in report]
    (folder / "weights.json").write_text(json.dumps(fates, indent=1) + "\n", "utf-8")
    write_split(dataset, folder)


def write_results(folder: Path, result: Finetuned, loaded: Loaded, notes: tuple[str, ...]) -> None:
    """Write what came out: the model unless it is kNN, the adapter of LoRA, ``metrics.jsonl`` and the tables.

    What a run that trains says there can be repeated to the byte; its times stand in ``training/timing.jsonl``.

    Args:
        folder: the caller's to make atomic.
        notes: what was passed over in the data.
    """
    if result.neighbours is None:
        write_model(folder / "model", loaded.card, loaded.tensors)
    if result.trained is not None and result.trained.adapted is not None:
        write_adapter(folder / "adapter", result.trained.adapted, loaded.card)
    lines = [json.dumps(event) + "\n" for event in _events(result, notes)]
    (folder / "metrics.jsonl").write_text("".join(lines), "utf-8")
    write_findings(folder, result.findings, [entry.name for entry in result.evaluation.per_class])


def times_of(result: Finetuned) -> dict[str, Any]:
    """The results that are never the same twice."""
    return {name: value for name, value in result.to_dict().items() if name in TIMES}


def _events(result: Finetuned, notes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    timeless = result.trained is not None
    for candidate in result.probe.cross_validation if result.probe else ():
        yield {"event": "candidate", **asdict(candidate)}
    for choice in result.neighbours.left_out if result.neighbours else ():
        yield {"event": "neighbours", **asdict(choice)}
    for line in result.trained.epochs if result.trained else ():
        yield {"event": "epoch", **{name: value for name, value in line.items() if name not in TIMES}}
    for path, reason in result.unreadable:
        yield {"event": "unreadable", "path": str(path), "reason": reason}
    for note in notes:
        yield {"event": "note", "text": note}
    for one, other in result.findings.twins:
        yield {"event": "twin", "train": str(one.path), "held_out": str(other.path)}
    document = result.to_dict()
    yield {"event": "held-out", **{k: v for k, v in document.items() if not timeless or k not in (*TIMES, "folder")}}
