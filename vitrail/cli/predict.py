"""``vitrail predict``."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli.options import BatchSize, Device, Json, Quiet, Runtime
from vitrail.errors import UserError


def predict(
    model: Annotated[str, typer.Argument(help="A run folder, or any classifier that finetune's --weights takes.")],
    pictures: Annotated[list[Path], typer.Argument(help="Files, and folders to take all pictures from.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to give for each picture, likeliest first.")] = 1,
    batch_size: BatchSize = 32,
    device: Device = None,
    runtime: Runtime = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: path, label and probability by rank, reason.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Classify pictures. Those that cannot be read get a reason, and the exit code is then 1."""
    from vitrail.data.sources import iter_images
    from vitrail.tasks import classifier as task
    from vitrail.tasks.prediction import predictions

    if as_csv and as_json:
        raise UserError("--csv and --json exclude each other: choose one.")
    paths = iter_images(pictures)
    classifier = task.load(model, device=device, runtime=runtime, quiet=quiet)
    classes = classifier.classes()
    rows = predictions(classifier.predictor, classifier.card, classes, paths, top, batch_size)
    first = next(rows, None)  # a mistake is to come before anything is printed
    found = rows if first is None else chain([first], rows)
    write = _write_json if as_json else _write_csv if as_csv else _write_table
    if write(found, min(top, len(classes))):
        raise typer.Exit(1)


# Each prints as the predictions come, so that memory stays flat, and returns how many failed.


def _write_json(found: Iterable[Any], top: int) -> int:
    failed: list[dict[str, str]] = []
    separator = "\n    "
    sys.stdout.write('{\n  "predictions": [')
    for entry in found:
        if entry.reason is None:
            sys.stdout.write(separator + json.dumps(entry.to_dict()))
            separator = ",\n    "
        else:
            failed.append(entry.to_dict())
    sys.stdout.write(f'\n  ],\n  "failed": {json.dumps(failed)}\n}}\n')
    return len(failed)


def _write_csv(found: Iterable[Any], top: int) -> int:
    failed = 0
    writer = csv.writer(sys.stdout, lineterminator="\n")
    ranks = [f"{name}_{rank}" for rank in range(1, top + 1) for name in ("label", "probability")]
    writer.writerow(["path", *ranks, "reason"])
    for entry in found:
        failed += entry.reason is not None
        cells = [cell for label, probability in entry.labels for cell in (label, f"{probability:.6f}")]
        writer.writerow([entry.path, *(cells or [""] * len(ranks)), entry.reason or ""])
    return failed


def _write_table(found: Iterable[Any], top: int) -> int:
    failed = count = 0
    for entry in found:
        count += 1
        failed += entry.reason is not None
        labels = "  ".join(f"{100 * probability:5.1f} % {label}" for label, probability in entry.labels)
        print(f"{_clip(str(entry.path)):<48}  {labels or 'not read: ' + entry.reason}")
    if failed:
        print(f"{failed} of {count} could not be read.", file=sys.stderr)
    return failed


def _clip(path: str, width: int = 48) -> str:
    path = "".join(c if c.isprintable() else repr(c)[1:-1] for c in path)  # one line, and no orders to the terminal
    return path if len(path) <= width else "..." + path[3 - width :]
